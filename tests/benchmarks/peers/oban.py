"""Oban for Python: uvloop, orjson, a queue with a high limit, results recorded.

The settings, and why:

- uvloop and orjson, as its own command line sets them; psycopg with its C library, which it is built on.
- A limit of 200 for the queue: a producer fetches as many jobs as there are places free, and writes the outcomes of
  all that have ended before it fetches the next, so the limit is its batch. 50 is a third slower, 1000 no faster. The
  other settings are its defaults; 1 or 50 milliseconds to gather outcomes in, instead of 5, are no faster either.
- One call of ``enqueue_many`` for all jobs, its way for many. (Bulk inserts and bulk acknowledgements are in Oban Pro,
  which is sold and not measured here.)
- LISTEN/NOTIFY, its default.

Results are stored: the handlers return ``Record``.
"""

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable

import orjson
import uvloop
from oban import Job, Oban, Record
from oban import worker as oban_worker
from psycopg.types.json import set_json_dumps, set_json_loads

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

LIMIT = 200


@oban_worker(queue="drain")
class Noop:
    """The least that a job with an argument and a stored result can do."""

    new: Callable[[dict[str, int]], Job]  # the decorator gives it

    async def process(self, job: Job) -> Record:
        started()
        return Record({"ok": job.args["n"]})


@oban_worker(queue="latency")
class Stamp:
    """Notes when it started."""

    new: Callable[[dict[str, int]], Job]

    async def process(self, job: Job) -> None:
        moment = time.time()
        stamp(job.args["n"], moment)


def drain(options: Options) -> Result:
    """Enqueue all, then work them off."""
    return uvloop.run(_drain(options))


async def _drain(options: Options) -> Result:
    install(options)
    async with await Oban.create_pool(options.url) as pool:
        oban = Oban(pool=pool)
        began = time.time()
        await oban.enqueue_many(Noop.new({"n": n}) for n in range(options.jobs))
        enqueuing = time.time() - began
        async with pool.connection() as link:
            await link.set_autocommit(True)
            await link.execute("analyze")  # as autovacuum does within a minute
            with workers([same_program(options)] * options.workers) as running:

                async def done() -> bool:
                    rows = await link.execute(
                        "select exists (select from oban_jobs where state in ('available', 'executing', 'scheduled', "
                        "'retryable') and queue = 'drain')"
                    )
                    return not (await rows.fetchone())[0]

                await until(done, running)
            rows = await link.execute(
                "select extract(epoch from max(completed_at))::float, count(*) from oban_jobs "
                "where state = 'completed' and meta ? 'return'"
            )
            finished, count = await rows.fetchone()
            await link.set_autocommit(False)
    assert count == options.jobs, f"{count} of {options.jobs} have a result"
    settings = f"uvloop, orjson, psycopg (binary), queue limit {LIMIT}, LISTEN/NOTIFY; results are stored (Record)"
    return drained(options, enqueuing, finished, settings, "oban")


def latency(options: Options) -> Result:
    """Single jobs for an idle worker."""
    return uvloop.run(_latency(options))


async def _latency(options: Options) -> Result:
    install(options)
    async with await Oban.create_pool(options.url) as pool:
        oban = Oban(pool=pool)

        async def enqueue(n: int) -> float:
            async with pool.connection() as link:
                await oban.enqueue(Stamp.new({"n": n}), conn=link)
                await link.commit()
                return time.time()

        with workers([same_program(options)]) as running:
            waits = await singles(options, enqueue, running)
    return waited(options, waits, f"uvloop, orjson, psycopg (binary), queue limit {LIMIT}, LISTEN/NOTIFY", "oban")


def install(options: Options) -> None:
    """Its tables, made with its own tool; and JSON as its command line has it."""
    subprocess.run([sys.executable, "-P", "-m", "oban", "install", "--dsn", options.url], stdout=sys.stderr, check=True)
    faster_json()


def faster_json() -> None:
    """As ``oban start`` does."""
    set_json_dumps(orjson.dumps)
    set_json_loads(orjson.loads)


def worker(options: Options) -> None:
    """One worker process."""
    faster_json()
    uvloop.run(_worker(options))


async def _worker(options: Options) -> None:
    async with await Oban.create_pool(options.url) as pool:
        at_the_gate(options)
        async with Oban(pool=pool, queues={options.kind: LIMIT}):
            await asyncio.Event().wait()


if __name__ == "__main__":
    main(drain, latency, worker)
