"""PgQueuer: asyncpg, uvloop, batches of 500.

The settings, and why:

- asyncpg, the driver that its own benchmarks take by default, on uvloop, as they run; a pool of four connections, for
  on a single one the writing of outcomes waits for the next claim.
- Batches of 500 for the drain, where its default is 10: every batch costs one claim and one write of outcomes. 1000
  was no faster. No ceiling for concurrent jobs and none for the entrypoint: its claim is a plain one then.
- LISTEN/NOTIFY stays on, with the 30 seconds between two looks that are its default.
- Its tables as it installs them by default, durable: all of them logged. Its settings for autovacuum are applied too,
  with ``pgq autovac``.
- ANALYZE after the jobs are enqueued, which is not measured: autovacuum would do it within a minute.
- A batch of 10, its default, for the latency: there is one job at a time.

It stores no results, only that a job succeeded; its handlers return nothing.
"""

import json
import subprocess
import sys
import time
from datetime import timedelta

import asyncpg
import uvloop
from pgqueuer import PgQueuer, Queries
from pgqueuer.db import AsyncpgDriver, AsyncpgPoolDriver
from pgqueuer.models import Job

from tests.benchmarks.peers._adapter import (
    Options,
    Result,
    at_the_gate,
    drained,
    main,
    same_program,
    singles,
    stamp,
    started,
    until,
    waited,
    workers,
)

BATCH = 500
POOL = 4


def drain(options: Options) -> Result:
    """Enqueue all, then work them off."""
    install(options)
    return uvloop.run(_drain(options))


async def _drain(options: Options) -> Result:
    link = await asyncpg.connect(options.url)
    queries = Queries(AsyncpgDriver(link))
    began = time.time()
    payloads: list[bytes | None] = [json.dumps({"n": n}).encode() for n in range(options.jobs)]
    await queries.enqueue(["noop"] * options.jobs, payloads, [0] * options.jobs)
    enqueuing = time.time() - began
    await link.execute("analyze")  # as autovacuum does within a minute
    with workers([same_program(options)] * options.workers) as running:

        async def done() -> bool:
            return not await link.fetchval("select exists (select from pgqueuer)")

        await until(done, running)
        finished, count = await link.fetchrow(
            "select extract(epoch from max(created))::float, count(*) from pgqueuer_log where status = 'successful'"
        )
    assert count == options.jobs, f"{count} of {options.jobs} succeeded"
    settings = f"asyncpg pool of {POOL}, uvloop, batch {BATCH}, LISTEN/NOTIFY, logged tables; results cannot be stored"
    return drained(options, enqueuing, finished, settings, "pgqueuer")


def latency(options: Options) -> Result:
    """Single jobs for an idle worker."""
    install(options)
    return uvloop.run(_latency(options))


async def _latency(options: Options) -> Result:
    link = await asyncpg.connect(options.url)
    queries = Queries(AsyncpgDriver(link))

    async def enqueue(n: int) -> float:
        async with link.transaction():
            await queries.enqueue("stamp", json.dumps({"n": n}).encode())
        return time.time()

    with workers([same_program(options)]) as running:
        waits = await singles(options, enqueue, running)
    return waited(options, waits, f"asyncpg pool of {POOL}, uvloop, batch 10, LISTEN/NOTIFY", "pgqueuer")


def install(options: Options) -> None:
    """Its tables, made with its own tool."""
    for command in ("install", "autovac"):
        tool = [sys.executable, "-P", "-m", "pgqueuer", command]
        subprocess.run(tool, env={"PGQUEUER_DSN": options.url}, stdout=sys.stderr, check=True)


def worker(options: Options) -> None:
    """One worker process."""
    uvloop.run(_worker(options))


async def _worker(options: Options) -> None:
    pgq = PgQueuer(AsyncpgPoolDriver(await asyncpg.create_pool(options.url, min_size=POOL, max_size=POOL)))

    @pgq.entrypoint("noop")
    async def noop(job: Job) -> None:
        started()

    @pgq.entrypoint("stamp")
    async def stamped(job: Job) -> None:
        moment = time.time()
        stamp(json.loads(job.payload)["n"], moment)

    at_the_gate(options)
    await pgq.run(dequeue_timeout=timedelta(seconds=30), batch_size=BATCH if options.kind == "drain" else 10)


if __name__ == "__main__":
    main(drain, latency, worker)
