"""Version 4 of the outbox: jobs carry along the trace in which they were enqueued."""

from alembic import op

from outbox import schema

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """The library's own DDL."""
    schema.upgrade(op.execute, from_=3, to=4)


def downgrade() -> None:
    """Forgets the traces of jobs; jobs stay."""
    schema.downgrade(op.execute, from_=4, to=3)
