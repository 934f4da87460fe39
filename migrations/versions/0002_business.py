"""Sign-ups, orders, stock, reports and imports of customers."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """The business tables."""
    moment = sa.TIMESTAMP(timezone=True)
    now = sa.text("now()")
    op.create_table(
        "users",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("email", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", moment, server_default=now, nullable=False),
        sa.PrimaryKeyConstraint("id", name="users_pkey"),
        sa.UniqueConstraint("email", name="users_email_key"),
    )
    op.create_table(
        "orders",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("email", sa.Text(), nullable=False),
        sa.Column("total_cents", sa.BigInteger(), nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.PrimaryKeyConstraint("id", name="orders_pkey"),
    )
    op.create_index("orders_created_at_idx", "orders", ["created_at"])
    op.create_table(
        "order_lines",
        sa.Column("order_id", sa.Uuid(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("sku", sa.Text(), nullable=False),
        sa.Column("quantity", sa.BigInteger(), nullable=False),
        sa.Column("unit_price_cents", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("order_id", "position", name="order_lines_pkey"),
        sa.ForeignKeyConstraint(["order_id"], ["orders.id"], name="order_lines_order_id_fkey", ondelete="CASCADE"),
        sa.CheckConstraint("quantity > 0", name="order_lines_quantity_check"),
        sa.CheckConstraint("unit_price_cents >= 0", name="order_lines_unit_price_check"),
    )
    op.create_table(
        "stock",
        sa.Column("sku", sa.Text(), nullable=False),
        sa.Column("available", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("sku", name="stock_pkey"),
    )
    op.create_table(
        "stock_movements",
        sa.Column("order_id", sa.Uuid(), nullable=False),
        sa.Column("moved_at", moment, server_default=now, nullable=False),
        sa.PrimaryKeyConstraint("order_id", name="stock_movements_pkey"),
        sa.ForeignKeyConstraint(["order_id"], ["orders.id"], name="stock_movements_order_id_fkey", ondelete="CASCADE"),
    )
    op.create_table(
        "reports",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("first_day", sa.Date(), nullable=False),
        sa.Column("last_day", sa.Date(), nullable=False),
        sa.Column("created_at", moment, server_default=now, nullable=False),
        sa.Column("ready_at", moment, nullable=True),
        sa.PrimaryKeyConstraint("id", name="reports_pkey"),
    )
    op.create_table(
        "imports",
        sa.Column("number", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("filename", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("created_at", moment, server_default=now, nullable=False),
        sa.PrimaryKeyConstraint("number", name="imports_pkey"),
        sa.UniqueConstraint("id", name="imports_id_key"),
    )
    op.create_table(
        "customers",
        sa.Column("email", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("country", sa.Text(), nullable=True),
        sa.Column("import_number", sa.BigInteger(), nullable=False),
        sa.Column("line", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("email", name="customers_pkey"),
        sa.ForeignKeyConstraint(["import_number"], ["imports.number"], name="customers_import_number_fkey"),
    )


def downgrade() -> None:
    """Drops all business data."""
    for table in ("customers", "imports", "reports", "stock_movements", "stock", "order_lines", "orders", "users"):
        op.drop_table(table)
