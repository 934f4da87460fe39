"""The handlers that are measured: they do nothing, so that the queue is what is measured."""

import os
import time

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from outbox import INJECTED, Limit, Outbox

engine = create_async_engine(
    os.environ.get("DATABASE_URL", "postgresql+asyncpg://").replace("postgresql://", "postgresql+asyncpg://"),
    pool_size=20,
)
outbox = Outbox(sessions=async_sessionmaker(engine))


@outbox.task()
async def noop(n: int) -> dict[str, int]:
    """The least that a job with an argument and a stored result can do."""
    return {"ok": n}


@outbox.task(queue="threads")
def in_thread(n: int) -> dict[str, int]:
    """The same in a thread."""
    return {"ok": n}


@outbox.task(queue="accounts")
async def credit(n: int, session: AsyncSession = INJECTED) -> dict[str, int]:
    """One business row changed, in the transaction that settles the job."""
    await session.execute(text("update account set balance = balance + 1 where id = :id"), {"id": n % 1000})
    return {"ok": n}


@outbox.task(queue="latency")
async def stamp() -> float:
    """When the handler started, by the clock that the benchmark reads too."""
    return time.time()


@outbox.task(queue="limited", limit=Limit(concurrency=100))
async def limited(n: int) -> dict[str, int]:
    """The same under a limit."""
    return {"ok": n}
