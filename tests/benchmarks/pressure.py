"""How fast it stays while the database is under what kills queues in tables."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from tests.benchmarks import bench

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


async def beside_history(server: str, jobs: int, finished: int, scheduled: int, blocked: int) -> tuple[float, float]:
    """The speed beside so many finished, scheduled and blocked jobs, and in an empty database."""
    async with bench.database(server) as url:
        client = await bench.connect(url)
        empty = sorted(await rounds(url, client, 3, jobs))[1]
        await _history(client, finished, scheduled, blocked)
        full = sorted(await rounds(url, client, 3, jobs))[1]
        await client.close()
    return full, empty


async def _history(client: asyncpg.Connection, finished: int, scheduled: int, blocked: int) -> None:
    await client.execute(
        "insert into outbox.finished_job (id, task, queue, state, payload, fence, attempt, started_at, result) "
        "select outbox.uuid7(), 'noop', 'old', 'succeeded', jsonb_build_object('n', n), 1, 1, clock_timestamp(), "
        "jsonb_build_object('ok', n) from generate_series(1, $1::integer) n",
        finished,
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
    await client.execute("checkpoint")
