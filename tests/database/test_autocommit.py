"""Without a transaction there is no enqueue: a connection that commits by itself is refused."""

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from outbox import Outbox
from outbox.errors import EnqueueFailed

outbox = Outbox()


@outbox.task()
async def noop() -> None:
    """Nothing."""


async def test_a_session_in_autocommit_is_refused_and_nothing_is_written(engine: AsyncEngine) -> None:
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
    async with AsyncSession(autocommit) as session:
        noop.enqueue(session)
        with pytest.raises(EnqueueFailed, match="autocommit"):
            await session.flush()
    await nothing_written(engine)


async def test_a_core_connection_in_autocommit_is_refused_and_nothing_is_written(engine: AsyncEngine) -> None:
    async with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        with pytest.raises(EnqueueFailed, match="autocommit"):
            await outbox.enqueue_many(connection, [noop.job()])
    await nothing_written(engine)


async def nothing_written(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        assert (await connection.execute(text("select count(*) from outbox.job"))).scalar() == 0
