"""What it costs to enqueue: in an ORM transaction, in bulk, and by many writers at once."""

import asyncio
import statistics
import time

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from outbox.wakeup import Notifier
from tests.benchmarks import bench
from tests.benchmarks.tasks import noop, outbox


class Base(DeclarativeBase):
    """The business tables of the benchmark."""


class Purchase(Base):
    """A business row."""

    __tablename__ = "purchase"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


async def in_transactions(server: str, rounds: int) -> tuple[float, float, float]:
    """Milliseconds (medians) of a transaction that inserts a business row, with no job, one and four.

    The three take turns, so that whatever the machine does meanwhile happens to all of them.
    """
    async with bench.database(server) as url:
        engine = create_async_engine(url)
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        sessions = async_sessionmaker(engine)
        times: dict[int, list[float]] = {0: [], 1: [], 4: []}
        for n in range(rounds + 50):
            for jobs, measured in times.items():
                began = time.perf_counter()
                async with sessions.begin() as session:
                    session.add(Purchase(name="x"))
                    for _ in range(jobs):
                        noop.enqueue(session, n)
                if n >= 50:
                    measured.append((time.perf_counter() - began) * 1000)
        await engine.dispose()
    none, one, four = (statistics.median(each) for each in times.values())
    return none, one, four


async def in_bulk(server: str, rounds: int, count: int = 10_000) -> tuple[float, float]:
    """Jobs per second of ``enqueue_many`` in the caller's transaction, commit included; the median of the rounds.

    Of jobs that are there, and with the making of them: checking their arguments and writing these as JSON.
    """
    async with bench.database(server) as url:
        engine = create_async_engine(url)
        writing, both = [], []
        for _ in range(rounds):
            begin = time.perf_counter()
            jobs = [noop.job(n) for n in range(count)]
            made = time.perf_counter()
            async with AsyncSession(engine) as session, session.begin():
                await outbox.enqueue_many(session, jobs)
            end = time.perf_counter()
            writing.append(count / (end - made))
            both.append(count / (end - begin))
        await engine.dispose()
    return statistics.median(writing), statistics.median(both)


async def by_writers(server: str, seconds: float, writers: int = 16) -> tuple[float, float]:
    """Commits per second of so many writers at once, each commit with one job: with wake-ups, and without."""
    async with bench.database(server) as url:
        engine = create_async_engine(url, pool_size=writers + 1)
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        sessions = async_sessionmaker(engine)
        with_wake_up, without = 0, 0
        async with bench.workers(url, "none:1"):  # it listens, as in real life
            for _ in range(4):  # in turns
                async with Notifier(engine):
                    with_wake_up += await _write(sessions, seconds / 4, writers)
                without += await _write(sessions, seconds / 4, writers)
        await engine.dispose()
    return with_wake_up / seconds, without / seconds


async def _write(sessions: async_sessionmaker[AsyncSession], seconds: float, writers: int) -> int:
    until, commits = time.monotonic() + seconds, 0

    async def write() -> None:
        nonlocal commits
        while time.monotonic() < until:
            async with sessions.begin() as session:
                session.add(Purchase(name="x"))
                noop.enqueue(session, commits)
            commits += 1

    await asyncio.gather(*(write() for _ in range(writers)))
    return commits


async def floor_of_bulk(server: str, rounds: int, count: int = 10_000) -> float:
    """Rows per second of the same rows, written by the server itself."""
    async with bench.database(server) as url:
        engine = create_async_engine(url)
        statement = text(
            "insert into outbox.live_job (task, payload) select 'noop', jsonb_build_object('n', n) "
            "from generate_series(1, :count) n"
        )
        speeds = []
        for _ in range(rounds):
            began = time.perf_counter()
            async with engine.begin() as connection:
                await connection.execute(statement, {"count": count})
            speeds.append(count / (time.perf_counter() - began))
        await engine.dispose()
    return statistics.median(speeds)
