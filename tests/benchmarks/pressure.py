"""How fast it stays while the database is under what kills queues in tables."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import uuid4

import asyncpg

from outbox import State, WorkerSettings, claim, maintenance
from outbox.connection import Link
from outbox.marks import Marks
from outbox.outcome import Finished
from tests.benchmarks import bench

DAYS = 13
"""How old the history is, in days: a worker keeps it."""

PAUSE = """
insert into outbox.queue (name, paused_at) values ('default', now()) on conflict (name) do update set paused_at = now()
"""
RESUME = "update outbox.queue set paused_at = null where name = 'default'"

READ = """
select task, count(*), avg(fence), max(run_at), percentile_cont(0.5) within group (order by extract(epoch from run_at))
from (select task, fence, run_at from outbox.live_job union all select task, fence, run_at from outbox.finished_job) j
group by task
"""


@asynccontextmanager
async def held_snapshot(url: str) -> AsyncIterator[None]:
    """Somebody has looked at the database and has not ended the transaction since."""
    client = await bench.connect(url)
    async with client.transaction(isolation="repeatable_read", readonly=True):
        await client.fetch("select from outbox.live_job limit 1")
        yield
    await client.close()


@asynccontextmanager
async def open_writer(url: str) -> AsyncIterator[None]:
    """Somebody has written something and has not ended the transaction since."""
    client = await bench.connect(url)
    await client.execute("create table if not exists bystander (n integer)")
    async with client.transaction():
        await client.execute("insert into bystander values (1)")
        yield
    await client.close()


@asynccontextmanager
async def readers(url: str, count: int = 4) -> AsyncIterator[None]:
    """So many that read all of it, each in a transaction of three seconds, so that somebody always holds a snapshot."""

    async def read(n: int) -> None:
        client = await bench.connect(url)
        await asyncio.sleep(0.75 * n)
        while True:
            async with client.transaction(isolation="repeatable_read", readonly=True):
                await client.fetch(READ)
                await asyncio.sleep(3)

    reading = [asyncio.create_task(read(n)) for n in range(count)]
    try:
        yield
    finally:
        for each in reading:
            each.cancel()
        await asyncio.gather(*reading, return_exceptions=True)


async def rounds(url: str, client: asyncpg.Connection, count: int, jobs: int) -> list[float]:
    """Jobs per second of each of so many rounds, one worker running all the time."""
    async with bench.workers(url, "default:100"):
        return [await round_of(client, jobs) for _ in range(count)]


async def round_of(client: asyncpg.Connection, jobs: int) -> float:
    """Jobs per second of one round."""
    since = await bench.clock(client)
    await client.execute(PAUSE)
    await bench.fill(client, jobs)
    await client.execute(RESUME)
    await bench.until_empty(client)
    speed, done = await bench.jobs_per_second(client, since=since)
    if done != jobs:
        raise RuntimeError(f"{done:,} of {jobs:,} jobs have a result")
    return speed


async def snapshot(server: str, count: int, jobs: int) -> list[float]:
    """Each round's speed under one held snapshot."""
    async with bench.database(server) as url, held_snapshot(url):
        client = await bench.connect(url)
        speeds = await rounds(url, client, count, jobs)
        await client.close()
    return speeds


async def writer(server: str, count: int, jobs: int) -> tuple[list[float], float]:
    """Each round's speed beside an open writing transaction, and that of one ten seconds after its end."""
    async with bench.database(server) as url:
        client = await bench.connect(url)
        async with open_writer(url):
            speeds = await rounds(url, client, count, jobs)
        await asyncio.sleep(10)
        after = (await rounds(url, client, 1, jobs))[0]
        await client.close()
    return speeds, after


async def beside_readers(server: str, jobs: int) -> tuple[float, float]:
    """The speed beside overlapping readers, and alone, in turns."""
    beside, alone = [], []
    async with bench.database(server) as url:
        client = await bench.connect(url)
        async with bench.workers(url, "default:100"):
            for _ in range(3):
                alone.append(await round_of(client, jobs))
                async with readers(url):
                    beside.append(await round_of(client, jobs))
        await client.close()
    return sorted(beside)[1], sorted(alone)[1]


@dataclass(frozen=True)
class History:
    """What is measured beside a long history, and in an empty database."""

    speed: float
    speed_alone: float
    claim: float
    claim_alone: float
    drop: float
    """Seconds to drop a day with all of the finished jobs."""
    longest: float
    """Seconds that the longest settle took meanwhile."""


async def beside_history(server: str, jobs: int, finished: int, scheduled: int, blocked: int) -> History:
    """Drain and claim beside so many finished, scheduled and blocked jobs, and in an empty database."""
    async with bench.database(server) as url:
        client = await bench.connect(url)
        alone = sorted(await rounds(url, client, 3, jobs))[1]
        claim_alone = await _claim(url, client)
        await _history(client, finished, scheduled, blocked)
        beside = sorted(await rounds(url, client, 3, jobs))[1]
        claim = await _claim(url, client)
        drop, longest = await _drop(url, client)
        await client.close()
    return History(beside, alone, claim, claim_alone, drop, longest)


async def _history(client: asyncpg.Connection, finished: int, scheduled: int, blocked: int) -> None:
    await client.execute("select outbox.add_partition((now() at time zone 'UTC')::date - $1::integer)", DAYS)
    await client.execute(
        "insert into outbox.finished_job "
        "(id, task, queue, state, payload, fence, attempt, started_at, finished_at, result) "
        "select outbox.uuid7(), 'noop', 'old', 'succeeded', jsonb_build_object('n', n), 1, 1, clock_timestamp(), "
        "date_trunc('day', now(), 'UTC') - make_interval(days => $2), jsonb_build_object('ok', n) "
        "from generate_series(1, $1::integer) n",
        finished,
        DAYS,
        timeout=3600,
    )
    for priority in range(4):
        await client.execute(bench.FILL, "noop", "default", scheduled // 4, priority, 86_400.0, timeout=3600)
    await client.execute(
        "insert into outbox.live_job (task, queue, payload, group_key, blocked) "
        "select 'noop', 'elsewhere', '{}', 'g', 'new' from generate_series(1, $1::integer)",
        blocked,
        timeout=3600,
    )
    await client.execute("checkpoint", timeout=3600)


async def _claim(url: str, client: asyncpg.Connection, count: int = 300, size: int = 50) -> float:
    """Milliseconds that 99 of 100 claims of so many jobs do not exceed."""
    await bench.fill(client, count * size)
    link, marks, took = Link(url, WorkerSettings(), "bench claim"), Marks(), []
    while True:
        began = time.perf_counter()
        taken = await claim.take(link, {"default": size}, {"noop": 1}, uuid4(), 30, marks=marks)
        took.append((time.perf_counter() - began) * 1000)
        if not taken:
            break
        await claim.settle(link, [(each, Finished(State.SUCCEEDED, "{}")) for each in taken])
    await link.close()
    return bench.quantiles(took[5:])[1]


async def _drop(url: str, client: asyncpg.Connection) -> tuple[float, float]:
    """Seconds that retention takes for the day with the history, and the longest settle of a busy worker meanwhile."""
    await bench.fill(client, 20_000)
    link, settles, longest, done = Link(url, WorkerSettings(), "bench settle"), 0, 0.0, asyncio.Event()

    async def settle() -> None:
        nonlocal settles, longest
        while not done.is_set():
            taken = await claim.take(link, {"default": 10}, {"noop": 1}, uuid4(), 30)
            began = time.perf_counter()
            await claim.settle(link, [(each, Finished(State.SUCCEEDED, "{}")) for each in taken])
            longest, settles = max(longest, time.perf_counter() - began), settles + 1

    settling = asyncio.create_task(settle())
    keeper = Link(url, WorkerSettings(), "bench keeper")
    await maintenance.keep_partitions(keeper, 10 * DAYS)  # what has nothing to do with the drop
    began = time.perf_counter()
    if not await maintenance.keep_partitions(keeper, DAYS - 1):
        raise RuntimeError("the table was in use")
    took = time.perf_counter() - began
    done.set()
    await settling
    await keeper.close()
    await link.close()
    return took, longest
