"""Stock is taken exactly once: the handler's writes, the next job and the job's own end are one commit."""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from outbox import INJECTED, Outbox

engine = create_async_engine("postgresql+asyncpg://localhost/shop")
outbox = Outbox(sessions=async_sessionmaker(engine))


@outbox.task()
async def tell_buyer(sku: str) -> None: ...


@outbox.task()
async def take_from_stock(sku: str, count: int, *, session: AsyncSession = INJECTED) -> int:
    statement = text("update stock set available = available - :count where sku = :sku returning available")
    left: int = (await session.execute(statement, {"sku": sku, "count": count})).scalar_one()
    if left < 10:
        tell_buyer.enqueue(session, sku)
    return left  # no commit: the worker commits, together with the job's state
