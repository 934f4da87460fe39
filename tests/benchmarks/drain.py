"""How fast waiting jobs are worked off."""

import asyncpg

from tests import pooler
from tests.benchmarks import bench
from tests.benchmarks.bench import Cost

_LIMITED = """
insert into outbox.live_job (task, queue, payload, limited, limit_key)
select 'limited', 'limited', jsonb_build_object('n', n), true, '' from generate_series(1, $1::integer) n
"""
_GROUPED = """
insert into outbox.live_job (task, payload, group_key, blocked)
select 'noop', jsonb_build_object('n', n), 'g' || n % 1000, 'new' from generate_series(1, $1::integer) n
"""


async def plain(server: str, jobs: int, *, workers: int = 1) -> tuple[float, Cost]:
    """No-op jobs with a stored result: jobs per second, and what they cost the server."""
    async with bench.database(server) as url:
        client = await bench.connect(url)
        await bench.fill(client, jobs)
        before = await Cost.now(client)
        async with bench.workers(url, "default:100", workers):
            await bench.until_empty(client)
        cost = await Cost.now(client) - before
        speed = await _speed(client, "noop", jobs)
        await client.close()
    return speed, cost


async def threads(server: str, jobs: int) -> float:
    """The same with handlers in threads."""
    async with bench.database(server) as url:
        client = await bench.connect(url)
        await bench.fill(client, jobs, "in_thread", "threads")
        return await _worked_off(url, client, "threads:20", "in_thread", jobs)


async def transactional(server: str, jobs: int) -> float:
    """The same with a business row changed in the transaction that settles the job."""
    async with bench.database(server) as url:
        client = await bench.connect(url)
        await client.execute(
            "create table account (id integer primary key, balance integer not null default 0);"
            "insert into account select generate_series(0, 999)"
        )
        await bench.fill(client, jobs, "credit", "accounts")
        speed = await _worked_off(url, client, "accounts:20", "credit", jobs)
        client = await bench.connect(url)
        assert await client.fetchval("select sum(balance) from account") == jobs
        await client.close()
    return speed


async def limited(server: str, jobs: int) -> float:
    """The same under a limit of how many run at once, which is never reached for long."""
    async with bench.database(server) as url:
        client = await bench.connect(url)
        await client.execute(_LIMITED, jobs)
        return await _worked_off(url, client, "limited:100", "limited", jobs)


async def groups(server: str, jobs: int) -> float:
    """The same where all jobs are of one of a thousand groups, each of which runs in order."""
    async with bench.database(server) as url:
        client = await bench.connect(url)
        await client.execute(_GROUPED, jobs)
        return await _worked_off(url, client, "default:100", "noop", jobs)


async def pooled(server: str, jobs: int) -> float:
    """The same by way of PgBouncer in transaction mode."""
    async with bench.database(server) as url:
        client = await bench.connect(url)
        await bench.fill(client, jobs)
        with pooler.pooled(url) as through:
            return await _worked_off(through, client, "default:100", "noop", jobs)


async def _worked_off(url: str, client: asyncpg.Connection, queue: str, task: str, jobs: int) -> float:
    """Jobs per second of one worker, which begins with all of them there. Closes the connection."""
    async with bench.workers(url, queue):
        await bench.until_empty(client, queue.partition(":")[0])
    speed = await _speed(client, task, jobs)
    await client.close()
    return speed


async def _speed(client: asyncpg.Connection, task: str, jobs: int) -> float:
    speed, done = await bench.jobs_per_second(client, task)
    if done != jobs:
        raise RuntimeError(f"{done:,} of {jobs:,} jobs have a result")
    return speed
