"""What every row needs: a database, jobs in it, workers as real processes, and what they cost the server."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from uuid import uuid4

import asyncpg
from sqlalchemy import make_url

from outbox import connection, migrate

FILL = """
insert into outbox.live_job (task, queue, payload, priority, run_at)
select $1, $2, jsonb_build_object('n', n), $4, clock_timestamp() + make_interval(secs => $5)
from generate_series(1, $3::integer) n
"""


@asynccontextmanager
async def database(server: str) -> AsyncIterator[str]:
    """The URL of an empty database with our schema, on this server."""
    name = f"bench_{uuid4().hex[:8]}"
    await _execute(server, f"create database {name}")
    url = make_url(server).set(database=name).render_as_string(hide_password=False)
    await migrate.migrate(url)
    try:
        yield url
    finally:
        await _execute(server, f"drop database {name} with (force)")


async def _execute(server: str, statement: str) -> None:
    client = await connect(server)
    await client.execute(statement)
    await client.close()


async def connect(url: str) -> asyncpg.Connection:
    """A plain connection."""
    return await asyncpg.connect(connection.dsn(url))


async def fill(
    client: asyncpg.Connection, count: int, task: str = "noop", queue: str = "default", *, later: float = 0.0
) -> None:
    """Put jobs there, due in so many seconds; the server has then written down what it has in memory."""
    await client.execute(FILL, task, queue, count, 1, later)
    await client.execute("checkpoint")


@asynccontextmanager
async def workers(url: str, queue: str, count: int = 1, *options: str) -> AsyncIterator[list[int]]:
    """Real worker processes with default settings, once they are up, until the end of the block; their pids."""
    async with AsyncExitStack() as stack:
        each = [stack.enter_async_context(_worker(url, queue, options)) for _ in range(count)]
        yield list(await asyncio.gather(*each))


@asynccontextmanager
async def _worker(url: str, queue: str, options: Sequence[str]) -> AsyncIterator[int]:
    command = [sys.executable, "-m", "outbox", "worker", "tests.benchmarks.tasks:outbox", "-q", queue, *options]
    process = await asyncio.create_subprocess_exec(
        *command, env={**os.environ, "DATABASE_URL": url}, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    while b"worker_started" not in (line := await process.stderr.readline()):
        if not line:
            raise RuntimeError("the worker did not start")
    rest = asyncio.create_task(process.stderr.read())
    try:
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        await process.wait()
        await rest


@dataclass(frozen=True)
class Cost:
    """What a span of time did to the server."""

    seconds: float
    commits: int
    wal: int

    @staticmethod
    async def now(client: asyncpg.Connection) -> "Cost":
        """What it has done so far."""
        row = await client.fetchrow(
            "select xact_commit + xact_rollback as commits, pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0') as wal "
            "from pg_stat_database where datname = current_database()"
        )
        assert row is not None
        return Cost(time.monotonic(), row["commits"], int(row["wal"]))

    def __sub__(self, before: "Cost") -> "Cost":
        return Cost(self.seconds - before.seconds, self.commits - before.commits, self.wal - before.wal)


async def until_empty(client: asyncpg.Connection, queue: str = "default") -> None:
    """Return once no job of the queue is due, or runs."""
    left = "select exists (select from outbox.live_job where queue = $1 and run_at <= now() + interval '1 hour')"
    while await client.fetchval(left, queue):  # noqa: ASYNC110 - in the database
        await asyncio.sleep(0.05)


async def jobs_per_second(client: asyncpg.Connection, task: str = "noop", *, since: float = 0.0) -> tuple[float, int]:
    """From the first claim to the last result stored, by the database's clock; and how many there were.

    :param since: the clock of the database at which what counts began.
    """
    row = await client.fetchrow(
        "select count(*) as jobs, extract(epoch from max(finished_at) - min(started_at))::float as seconds "
        "from outbox.finished_job where task = $1 and state = 'succeeded' and result is not null "
        "and finished_at >= to_timestamp($2::double precision)",
        task,
        since,
    )
    assert row is not None
    return row["jobs"] / row["seconds"], row["jobs"]


async def clock(client: asyncpg.Connection) -> float:
    """The database's clock, in seconds."""
    return float(await client.fetchval("select extract(epoch from clock_timestamp())"))


def cpu_seconds(pid: int) -> float:
    """What a process has used so far."""
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    """Its memory."""
    with open(f"/proc/{pid}/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def quantiles(values: Sequence[float]) -> tuple[float, float]:
    """The median, and what 99 of 100 do not exceed."""
    ordered = sorted(values)
    return ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
