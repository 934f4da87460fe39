"""How fast waiting jobs are worked off."""

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
        speed, done = await bench.jobs_per_second(client)
        await client.close()
    _all(done, jobs)
    return speed, cost


async def threads(server: str, jobs: int) -> float:
    """The same with handlers in threads."""
    async with bench.database(server) as url:
        client = await bench.connect(url)
        await bench.fill(client, jobs, "in_thread", "threads")
        async with bench.workers(url, "threads:20"):
            await bench.until_empty(client, "threads")
        speed, done = await bench.jobs_per_second(client, "in_thread")
        await client.close()
    _all(done, jobs)
    return speed


async def transactional(server: str, jobs: int) -> float:
    """The same with a business row changed in the transaction that settles the job."""
    async with bench.database(server) as url:
        client = await bench.connect(url)
        await client.execute(
            "create table account (id integer primary key, balance integer not null default 0);"
            "insert into account select generate_series(0, 999)"
        )
        await bench.fill(client, jobs, "credit", "accounts")
        async with bench.workers(url, "accounts:20"):
            await bench.until_empty(client, "accounts")
        speed, done = await bench.jobs_per_second(client, "credit")
        assert await client.fetchval("select sum(balance) from account") == jobs
        await client.close()
    _all(done, jobs)
    return speed


async def limited(server: str, jobs: int) -> float:
    """The same under a limit of how many run at once, which is never reached for long."""
    async with bench.database(server) as url:
        client = await bench.connect(url)
        await client.execute(_LIMITED, jobs)
        async with bench.workers(url, "limited:100"):
            await bench.until_empty(client, "limited")
        speed, done = await bench.jobs_per_second(client, "limited")
        await client.close()
    _all(done, jobs)
    return speed


async def groups(server: str, jobs: int) -> float:
    """The same where all jobs are of one of a thousand groups, each of which runs in order."""
    async with bench.database(server) as url:
        client = await bench.connect(url)
        await client.execute(_GROUPED, jobs)
        async with bench.workers(url, "default:100"):
            await bench.until_empty(client)
        speed, done = await bench.jobs_per_second(client)
        await client.close()
    _all(done, jobs)
    return speed


async def pooled(server: str, jobs: int) -> float:
    """The same by way of PgBouncer in transaction mode."""
    async with bench.database(server) as url:
        client = await bench.connect(url)
        await bench.fill(client, jobs)
        with pooler.pooled(url) as through:
            async with bench.workers(through, "default:100"):
                await bench.until_empty(client)
        speed, done = await bench.jobs_per_second(client)
        await client.close()
    _all(done, jobs)
    return speed


def _all(done: int, jobs: int) -> None:
    if done != jobs:
        raise RuntimeError(f"{done:,} of {jobs:,} jobs have a result")
