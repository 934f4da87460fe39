"""Take what was sold out of stock, once."""

from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from api.handlers.registry import outbox
from api.models import OrderLine, Stock, StockMovement
from outbox import INJECTED


@outbox.task(queue="default", timeout=30)
async def take_from_stock(order_id: UUID, *, session: AsyncSession = INJECTED) -> None:
    """The stock, the movement and the job's end commit together, so this happens exactly once."""
    session.add(StockMovement(order_id=order_id))
    sold = (
        select(OrderLine.sku, (-func.sum(OrderLine.quantity)).label("available"))
        .where(OrderLine.order_id == order_id)
        .group_by(OrderLine.sku)
        .order_by(OrderLine.sku)  # all orders lock articles in one order, so none waits for another in a circle
    )
    take = insert(Stock).from_select(["sku", "available"], sold)
    await session.execute(
        take.on_conflict_do_update(
            index_elements=[Stock.sku], set_={"available": Stock.available + take.excluded.available}
        )
    )
