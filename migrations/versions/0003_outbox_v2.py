"""Version 2 of the outbox."""

from alembic import op

from outbox import schema

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """The library's own DDL."""
    schema.upgrade(op.execute, from_=1, to=2)


def downgrade() -> None:
    """Keeps all jobs; keys, versions and checkpoints are lost."""
    schema.downgrade(op.execute, from_=2, to=1)
