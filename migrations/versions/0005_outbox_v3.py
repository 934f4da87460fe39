"""Version 3 of the outbox: what people see of jobs and workers, and who may."""

from alembic import op

from outbox import schema

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """The library's own DDL."""
    schema.upgrade(op.execute, from_=2, to=3)


def downgrade() -> None:
    """Forgets workers, statistics, keys and audit; jobs stay."""
    schema.downgrade(op.execute, from_=3, to=2)
