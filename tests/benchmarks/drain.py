"""How fast waiting jobs are worked off."""

from tests.benchmarks import bench
from tests.benchmarks.bench import Cost


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


def _all(done: int, jobs: int) -> None:
    if done != jobs:
        raise RuntimeError(f"{done:,} of {jobs:,} jobs have a result")
