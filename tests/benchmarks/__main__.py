"""``python -m tests.benchmarks``: the main rows, as a table and as build/bench.json."""

import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from api.postgres import binaries, embedded
from outbox import connection, migrate
from outbox.wakeup import Notifier
from tests.benchmarks import floor
from tests.benchmarks.tasks import stamp

DRAIN = int(os.environ.get("BENCH_DRAIN", "50000"))
STARTS = int(os.environ.get("BENCH_STARTS", "200"))
BATCH = 500
PAUSE = 0.05
"""Seconds between two single jobs: the worker is idle when each comes."""

BIN = binaries(18)


@dataclass(frozen=True)
class Row:
    """One figure beside what it is measured against, in the same run."""

    row: str
    ours: float
    against: str
    theirs: float
    ratio: float
    target: str
    met: bool


async def main() -> None:
    """Run every row and print the table."""
    with tempfile.TemporaryDirectory(prefix="outbox-bench-") as folder, embedded(Path(folder) / "pg") as url:
        await migrate.migrate(url)
        say(f"draining {DRAIN:,} no-op jobs with one worker process ...")
        drained = await drain(url)
        say(f"starting {STARTS} single jobs on an idle worker ...")
        starts = await latencies(url)
        say(f"the floor: pgbench in batches of {BATCH}, then job by job ...")
        batched = floor.jobs_per_second(BIN, connection.dsn(url), jobs=100_000, batch=BATCH)
        single = floor.jobs_per_second(BIN, connection.dsn(url), jobs=2_000, batch=1)
    show(rows(drained, batched, starts, single))


def rows(drained: float, batched: float, starts: list[float], single: float) -> list[Row]:
    """The figures beside what they are measured against."""
    p50, p99 = statistics.median(starts) * 1000, statistics.quantiles(starts, n=100)[98] * 1000
    one = 1000 / single
    floor_of_start = "pgbench, one job"
    return [
        Row(
            "drain, jobs/s", drained, f"pgbench, batch {BATCH}", batched, drained / batched, "≥ 20,000", drained >= 2e4
        ),
        Row("commit to start, p50 ms", p50, floor_of_start, one, p50 / one, "≤ 5", p50 <= 5),
        Row("commit to start, p99 ms", p99, floor_of_start, one, p99 / one, "", met=True),
    ]


def show(table: list[Row]) -> None:
    """Print the table and write it down for machines."""
    Path("build").mkdir(exist_ok=True)
    Path("build/bench.json").write_text(json.dumps([asdict(row) for row in table], indent=2, ensure_ascii=False) + "\n")
    print(f"{'':26}{'ours':>12}  {'against':22}{'theirs':>12}{'ratio':>8}  target")
    for row in table:
        mark = ("met" if row.met else "MISSED") if row.target else ""
        figures = f"{row.ours:>12,.2f}  {row.against:22}{row.theirs:>12,.2f}{row.ratio:>8.2f}"
        print(f"{row.row:26}{figures}  {row.target:9} {mark}")


async def drain(url: str) -> float:
    """Jobs per second from the first claim to the last result stored, by the database's clock."""
    client = await asyncpg.connect(connection.dsn(url))
    await client.execute(
        "insert into outbox.live_job (task, payload) "
        "select 'noop', jsonb_build_object('n', i) from generate_series(1, $1::integer) i",
        DRAIN,
    )
    async with worker(url, "default:100"):
        while await client.fetchval("select exists (select from outbox.live_job)"):  # noqa: ASYNC110 - in the database
            await asyncio.sleep(0.05)
    seconds = await client.fetchval(
        "select extract(epoch from max(finished_at) - min(started_at))::float from outbox.job where task = 'noop'"
    )
    stored = await client.fetchval("select count(*) from outbox.job where state = 'succeeded' and result ? 'ok'")
    await client.close()
    if stored != DRAIN:
        raise RuntimeError(f"{stored:,} of {DRAIN:,} jobs have a result")
    return DRAIN / float(seconds)


async def latencies(url: str) -> list[float]:
    """Seconds from the return of each commit to the start of its handler."""
    engine = create_async_engine(url)
    committed: dict[object, float] = {}
    async with worker(url, "latency:10"), Notifier(engine):
        for n in range(-20, STARTS):  # the first few warm connections and plans
            async with AsyncSession(engine) as session:
                job = stamp.enqueue(session)
                await session.commit()
                if n >= 0:
                    committed[job.id] = time.time()
            await asyncio.sleep(PAUSE)
        started = await results(engine, len(committed) + 20)
    await engine.dispose()
    return [max(0.0, started[id] - moment) for id, moment in committed.items()]


async def results(engine: AsyncEngine, expected: int) -> dict[object, float]:
    """The moments at which the handlers started, once all are there."""
    while True:
        async with engine.connect() as link:
            rows = (
                await link.exec_driver_sql("select id, result::float as result from outbox.job where task = 'stamp'")
            ).all()
        if len(rows) == expected and all(row.result is not None for row in rows):
            return {row.id: row.result for row in rows}
        await asyncio.sleep(0.05)


@asynccontextmanager
async def worker(url: str, queue: str) -> AsyncIterator[None]:
    """A real worker process with default settings, once it is up, until the end of the block."""
    command = [sys.executable, "-m", "outbox", "worker", "tests.benchmarks.tasks:outbox", "-q", queue]
    process = await asyncio.create_subprocess_exec(
        *command, env={**os.environ, "DATABASE_URL": url}, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    while b"worker_started" not in (line := await process.stderr.readline()):
        if not line:
            raise RuntimeError("the worker did not start")
    rest = asyncio.create_task(process.stderr.read())
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        await process.wait()
        await rest


def say(text: str) -> None:
    """Progress, apart from the table."""
    print(text, file=sys.stderr, flush=True)


asyncio.run(main())
