"""How long after its commit a job starts."""

import asyncio
import time

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from outbox.wakeup import Notifier
from tests.benchmarks import bench
from tests.benchmarks.tasks import noop, outbox, stamp

WARM = 20
"""Jobs that are not counted: they warm connections and plans."""


async def of_single_jobs(server: str, jobs: int, *, pause: float = 0.05, wake_up: bool = True) -> tuple[float, float]:
    """Milliseconds (median, 99th percentile) from the return of the commit to the start of the handler."""
    async with bench.database(server) as url:
        engine = create_async_engine(url)
        options = () if wake_up else ("--no-wake-up",)
        async with bench.workers(url, "latency:10", 1, *options):
            if wake_up:
                async with Notifier(engine):
                    committed = await _enqueue(engine, jobs, pause)
            else:
                committed = await _enqueue(engine, jobs, pause)
            started = await _starts(engine, jobs + WARM)
        await engine.dispose()
    return bench.quantiles([max(0.0, started[id] - moment) * 1000 for id, moment in committed.items()])


async def under_load(server: str, seconds: float, rate: int = 2000) -> tuple[float, float]:
    """The same while so many other jobs a second come and go."""
    async with bench.database(server) as url:
        engine = create_async_engine(url)
        async with bench.workers(url, "default:100", 1, "-q", "latency:10"), Notifier(engine):
            coming = asyncio.create_task(load(engine, rate))
            await asyncio.sleep(2)  # until the load is steady
            jobs = int(seconds * 20)
            committed = await _enqueue(engine, jobs, 0.05)
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
            started = await _starts(engine, jobs + WARM)
        await engine.dispose()
    return bench.quantiles([max(0.0, started[id] - moment) * 1000 for id, moment in committed.items()])


async def load(engine: AsyncEngine, rate: int) -> None:
    """So many jobs a second, in transactions of ten, until cancelled."""
    began, sent = time.monotonic(), 0
    while True:
        due = int((time.monotonic() - began) * rate)
        while sent < due:
            async with AsyncSession(engine) as session, session.begin():
                await outbox.enqueue_many(session, [noop.job(n) for n in range(10)])
            sent += 10
        await asyncio.sleep(0.002)


async def _enqueue(engine: AsyncEngine, jobs: int, pause: float) -> dict[object, float]:
    committed: dict[object, float] = {}
    for n in range(-WARM, jobs):
        id = await enqueue_one(engine)
        if n >= 0:
            committed[id] = time.time()
        await asyncio.sleep(pause)
    return committed


async def enqueue_one(engine: AsyncEngine) -> object:
    """A single job that notes when it starts, committed; its id."""
    async with AsyncSession(engine) as session:
        job = stamp.enqueue(session)
        await session.commit()
        return job.id


async def _starts(engine: AsyncEngine, expected: int) -> dict[object, float]:
    """The moments at which the handlers started, once all are there."""
    statement = "select id, result::float as result from outbox.finished_job where task = 'stamp'"
    while True:
        async with engine.connect() as link:
            rows = (await link.exec_driver_sql(statement)).all()
        if len(rows) == expected:
            return {row.id: row.result for row in rows}
        await asyncio.sleep(0.05)
