"""Procrastinate: psycopg's async connector, uvloop, many jobs at once.

The settings, and why:

- ``PsycopgConnector`` with the C library of psycopg (binary), its async connector, on uvloop.
- 50 jobs at once in each process, on 10 connections: a worker fetches its jobs one by one and writes the outcomes one
  by one, so that concurrency buys outcomes written while the next job is fetched. From 1 to 100 jobs at once, and 4 to
  50 connections, this was the fastest by a little.
- ``batch_defer_async`` with a thousand jobs a call, its way for many.
- All queues, ``listen_notify`` on, and jobs kept when they are done: all three are its defaults.
- ANALYZE after the jobs are enqueued, which is not measured: autovacuum would do it within a minute, and without it the
  statement that fetches a job sorts all that wait.

It stores no results, only that a job succeeded.
"""

import subprocess
import sys
import time

import procrastinate
import uvloop

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
    url,
    waited,
    workers,
)

CONCURRENCY = 50
POOL = 10
BATCH = 1000

app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=url(), min_size=2, max_size=POOL))


@app.task(name="noop", queue="drain")
async def noop(n: int) -> dict[str, int]:
    """The least that a job with an argument can do."""
    started()
    return {"ok": n}


@app.task(name="stamp", queue="latency")
async def stamped(n: int) -> None:
    """Notes when it started."""
    moment = time.time()
    stamp(n, moment)


def drain(options: Options) -> Result:
    """Enqueue all, then work them off."""
    return uvloop.run(_drain(options))


async def _drain(options: Options) -> Result:
    install()
    async with app.open_async():
        began = time.time()
        for first in range(0, options.jobs, BATCH):
            await noop.batch_defer_async(*({"n": n} for n in range(first, min(first + BATCH, options.jobs))))
        enqueuing = time.time() - began
        await app.connector.execute_query_async("analyze")  # as autovacuum does within a minute
        with workers([same_program(options)] * options.workers) as running:

            async def done() -> bool:
                left = "select exists (select from procrastinate_jobs where status in ('todo', 'doing')) as left"
                return not (await app.connector.execute_query_one_async(left))["left"]

            await until(done, running)
        found = await app.connector.execute_query_one_async(
            "select extract(epoch from max(at))::float as finished, count(*) as count from procrastinate_events "
            "where type = 'succeeded'"
        )
    assert found["count"] == options.jobs, f"{found['count']} of {options.jobs} succeeded"
    settings = f"psycopg, uvloop, concurrency {CONCURRENCY}, pool {POOL}, LISTEN/NOTIFY; results cannot be stored"
    return drained(options, enqueuing, found["finished"], settings, "procrastinate")


def latency(options: Options) -> Result:
    """Single jobs for an idle worker."""
    return uvloop.run(_latency(options))


async def _latency(options: Options) -> Result:
    install()

    async def enqueue(n: int) -> float:
        await stamped.defer_async(n=n)  # commits: its connections are in autocommit
        return time.time()

    async with app.open_async():
        with workers([same_program(options)]) as running:
            waits = await singles(options, enqueue, running)
    settings = f"psycopg (binary), uvloop, concurrency {CONCURRENCY}, LISTEN/NOTIFY"
    return waited(options, waits, settings, "procrastinate")


def install() -> None:
    """Its tables, made with its own tool."""
    tool = [sys.executable, "-P", "-m", "procrastinate", "--app", f"{__spec__.name}.app", "schema", "--apply"]
    subprocess.run(tool, stdout=sys.stderr, check=True)


def worker(options: Options) -> None:
    """One worker process."""
    uvloop.run(_worker(options))


async def _worker(options: Options) -> None:
    async with app.open_async():
        at_the_gate(options)
        await app.run_worker_async(concurrency=CONCURRENCY)


if __name__ == "__main__":
    main(drain, latency, worker)
