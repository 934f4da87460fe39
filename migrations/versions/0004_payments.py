"""Orders are paid."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """When it was, said by the payment provider's webhook."""
    op.execute("alter table orders add column paid_at timestamptz")


def downgrade() -> None:
    """What has been paid is forgotten."""
    op.execute("alter table orders drop column paid_at")
