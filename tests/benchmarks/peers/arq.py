"""ARQ over Redis: many jobs at once, a short pause between two looks, uvloop.

The settings, and why:

- ``max_jobs`` of 100: a worker is one process with one loop, and waits for Redis for many jobs at once. Not swept.
- ``poll_delay`` of 20 milliseconds, where its default is half a second: it has nothing that wakes an idle worker, so
  half of this pause is its latency on average. Not swept.
- uvloop, and hiredis for reading Redis's answers.
- Jobs are enqueued a hundred at a time on connections of a pool, for it has no call for many.

Results are stored in Redis for an hour, its default.
"""

import asyncio
import time
from typing import Any

import uvloop
from arq import create_pool
from arq.connections import RedisSettings
from arq.worker import Worker, func

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

MAX_JOBS = 100
POLL_DELAY = 0.02
TOGETHER = 100

redis = RedisSettings.from_dsn(url()) if url() else RedisSettings()


async def noop(context: dict[str, Any], n: int) -> dict[str, int]:
    """The least that a job with an argument and a stored result can do."""
    started()
    return {"ok": n}


async def stamped(context: dict[str, Any], n: int) -> None:
    """Notes when it started."""
    moment = time.time()
    stamp(n, moment)


def drain(options: Options) -> Result:
    """Enqueue all, then work them off."""
    return uvloop.run(_drain(options))


async def _drain(options: Options) -> Result:
    pool = await create_pool(redis)
    began = time.time()
    for first in range(0, options.jobs, TOGETHER):
        await asyncio.gather(*(pool.enqueue_job("noop", n) for n in range(first, min(first + TOGETHER, options.jobs))))
    enqueuing = time.time() - began

    async def done() -> bool:
        return not await pool.zcard("arq:queue")  # a job leaves it when its result is stored, in one transaction

    with workers([same_program(options)] * options.workers) as running:
        finished = await until(done, running, every=0.02)
    stored = len(await pool.keys("arq:result:*"))
    assert stored == options.jobs, f"{stored} of {options.jobs} have a result"
    settings = f"Redis, hiredis, uvloop, max_jobs {MAX_JOBS}, poll_delay {POLL_DELAY}; results are stored (Redis)"
    return drained(options, enqueuing, finished, settings, "arq")


def latency(options: Options) -> Result:
    """Single jobs for an idle worker."""
    return uvloop.run(_latency(options))


async def _latency(options: Options) -> Result:
    pool = await create_pool(redis)

    async def enqueue(n: int) -> float:
        await pool.enqueue_job("stamped", n)
        return time.time()

    with workers([same_program(options)]) as running:
        waits = await singles(options, enqueue, running)
    return waited(options, waits, f"Redis, hiredis, uvloop, poll_delay {POLL_DELAY} (default 0.5)", "arq")


def worker(options: Options) -> None:
    """One worker process."""
    asyncio.set_event_loop(uvloop.new_event_loop())
    at_the_gate(options)
    Worker(
        functions=[func(noop, name="noop"), func(stamped, name="stamped")],
        redis_settings=redis,
        max_jobs=MAX_JOBS,
        poll_delay=POLL_DELAY,
    ).run()


if __name__ == "__main__":
    main(drain, latency, worker)
