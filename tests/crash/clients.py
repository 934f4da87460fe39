"""Clients that enqueue in transactions of their own while workers and servers die, and remember what they know."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, PendingRollbackError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from outbox.newjob import NewJob
from tests.crash.database import Database
from tests.crash.handlers import tick, tick_in_thread
from tests.crash.history import Ledger
from tests.waiting import eventually

BACKLOG = 60
"""Jobs waiting that the clients keep up: workers that have nothing to do prove nothing when they die."""

ROLLBACKS = 0.2

_ORDER = text("insert into crash.orders (job) values (cast(:job as uuid))")

# What a driver raises when the server goes away under it; SQLAlchemy wraps most, and not all, of it.
LOST = (DBAPIError, PendingRollbackError, OSError, TimeoutError)


class Clients:
    """Each transaction writes one or two orders with their jobs, and one in five is rolled back.

    :param seconds: jobs take up to so long.
    """

    def __init__(self, engine: AsyncEngine, database: Database, *, seed: int, seconds: float = 0.2) -> None:
        self.ledger = Ledger()
        self._engine = engine
        self._database = database
        self._random = random.Random(seed)
        self._seconds = seconds
        self._stopped = False

    @asynccontextmanager
    async def at_work(self, *, count: int = 2) -> AsyncIterator[None]:
        """They work as long as the context is open; a backlog is there when it opens."""
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(self._work())
            await self._backlog()
            try:
                yield
            finally:
                self._stopped = True

    async def _backlog(self) -> None:
        async def is_there() -> bool:
            return bool(await self._database.value("select count(*) from outbox.live_job") >= BACKLOG // 2)

        await eventually(is_there)

    async def _work(self) -> None:
        while not self._stopped:
            try:
                waiting = await self._database.value("select count(*) from outbox.live_job where state = 'pending'")
            except Exception:  # noqa: BLE001 - whatever it is, the server is away: that is what this is for
                waiting = BACKLOG
            if waiting < BACKLOG:
                await self.transact()
            else:
                await asyncio.sleep(0.02)

    async def transact(self) -> None:
        """One transaction, and into the ledger with its jobs."""
        meant = self._random.random()
        jobs: set[str] = set()
        fate = self.ledger.rolled_back
        try:
            async with AsyncSession(self._engine) as session:
                jobs |= {str(self._enqueue(session).id) for _ in range(self._random.choice((1, 1, 2)))}
                for job in jobs:
                    await session.execute(_ORDER, {"job": job})
                if meant < ROLLBACKS / 2:
                    await session.flush()
                elif meant >= ROLLBACKS:
                    fate = self.ledger.unknown  # from here on only the server knows, until it has answered
                    await session.commit()
                    fate = self.ledger.committed
        except LOST:
            pass
        finally:
            fate |= jobs

    def _enqueue(self, session: AsyncSession) -> NewJob:
        task = self._random.choice((tick, tick, tick_in_thread))
        return task.enqueue(session, seconds=round(self._random.random() * self._seconds, 3))
