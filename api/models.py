"""The business tables. Jobs are the library's and stand in a schema of their own."""

from datetime import date, datetime
from typing import ClassVar
from uuid import UUID, uuid4

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Identity, MetaData, Text, func
from sqlalchemy.dialects.postgresql import TIMESTAMP
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

metadata = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "uq": "%(table_name)s_%(column_0_name)s_key",
        "ix": "%(table_name)s_%(column_0_name)s_idx",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
        "ck": "%(table_name)s_%(constraint_name)s_check",
    }
)


class Base(DeclarativeBase):
    """Text without a length, times with a zone: what Postgres likes best."""

    metadata = metadata
    type_annotation_map: ClassVar = {str: Text(), datetime: TIMESTAMP(timezone=True), int: BigInteger()}


class User(Base):
    """Somebody who signed up."""

    __tablename__ = "users"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    email: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Order(Base):
    """What somebody bought."""

    __tablename__ = "orders"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    email: Mapped[str]
    total_cents: Mapped[int]
    # Given by whoever makes the order, because the client is told before the row is written.
    created_at: Mapped[datetime] = mapped_column(index=True)
    paid_at: Mapped[datetime | None]
    lines: Mapped[list["OrderLine"]] = relationship(order_by="OrderLine.position", lazy="selectin")


class OrderLine(Base):
    """One article of an order."""

    __tablename__ = "order_lines"
    __table_args__ = (
        CheckConstraint("quantity > 0", name="quantity"),
        CheckConstraint("unit_price_cents >= 0", name="unit_price"),
    )

    order_id: Mapped[UUID] = mapped_column(ForeignKey("orders.id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    sku: Mapped[str]
    quantity: Mapped[int]
    unit_price_cents: Mapped[int]


class Stock(Base):
    """How much of an article can be sold. Below zero: sold, and yet to be made or bought."""

    __tablename__ = "stock"

    sku: Mapped[str] = mapped_column(primary_key=True)
    available: Mapped[int]


class StockMovement(Base):
    """That an order has been taken out of stock: one row per order, so that it happens once."""

    __tablename__ = "stock_movements"

    order_id: Mapped[UUID] = mapped_column(ForeignKey("orders.id", ondelete="CASCADE"), primary_key=True)
    moved_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Report(Base):
    """A revenue report that somebody asked for; its file is there once ``ready_at`` is set."""

    __tablename__ = "reports"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    first_day: Mapped[date]
    last_day: Mapped[date]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    ready_at: Mapped[datetime | None]


class CustomerImport(Base):
    """An uploaded CSV file. The number tells which of two imports is the later one."""

    __tablename__ = "imports"

    number: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    id: Mapped[UUID] = mapped_column(unique=True, default=uuid4)
    filename: Mapped[str]
    size: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Customer(Base):
    """A customer as the latest line about them says; that line is ``line`` of import ``import_number``."""

    __tablename__ = "customers"

    email: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    country: Mapped[str | None]
    import_number: Mapped[int] = mapped_column(ForeignKey("imports.number"))
    line: Mapped[int]
