"""Version 1 of the outbox: the tables of the job queue, in a schema of their own."""

from alembic import op

from outbox import schema

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """The library's own DDL."""
    schema.upgrade(op.execute, from_=0, to=1)


def downgrade() -> None:
    """Drops all jobs."""
    schema.downgrade(op.execute, from_=1, to=0)
