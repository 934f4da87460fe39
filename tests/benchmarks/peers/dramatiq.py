"""Dramatiq over Redis: a process for each worker, 8 threads in each, results in Redis.

The settings, and why:

- One process for each worker and 8 threads in it, as many as its default. Not swept.
- ``dramatiq_worker_timeout`` and ``dramatiq_queue_prefetch`` at their defaults. Not swept.
- hiredis is installed, which the Redis client then reads answers with.
- The middleware that it has by default, and the one for results.
- Jobs are sent one by one on one connection, for it has no call for many.

Results are stored in Redis, for ten minutes (its default).
"""

import asyncio
import sys
import time

import dramatiq
import redis as client
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from tests.benchmarks.peers._adapter import (
    Options,
    Result,
    drained,
    main,
    singles,
    stamp,
    started,
    until,
    url,
    waited,
    workers,
)

THREADS = 8
TIMEOUT = 1000
PREFETCH = 0

broker = RedisBroker(url=url() or "redis://127.0.0.1/0")
broker.add_middleware(Results(backend=RedisBackend(url=url() or "redis://127.0.0.1/0")))
dramatiq.set_broker(broker)


@dramatiq.actor(actor_name="noop", store_results=True)
def noop(n: int) -> dict[str, int]:
    """The least that a job with an argument and a stored result can do."""
    started()
    return {"ok": n}


@dramatiq.actor(actor_name="stamp")
def stamped(n: int) -> None:
    """Notes when it started."""
    moment = time.time()
    stamp(n, moment)


def drain(options: Options) -> Result:
    """Enqueue all, then work them off."""
    began = time.time()
    for n in range(options.jobs):
        noop.send(n)
    enqueuing = time.time() - began
    link = client.Redis.from_url(options.url)

    async def done() -> bool:
        return not link.hlen("dramatiq:default.msgs")  # a message leaves it when it is acknowledged

    with workers([command(options.workers)], environment()) as running:
        finished = asyncio.run(until(done, running, every=0.02))
    stored = sum(not key.startswith(b"dramatiq:") for key in link.scan_iter())  # the keys of results are digests
    assert stored == options.jobs, f"{stored} of {options.jobs} have a result"
    settings = f"Redis, hiredis, {THREADS} threads a process; results are stored (Redis)"
    return drained(options, enqueuing, finished, settings, "dramatiq")


def latency(options: Options) -> Result:
    """Single jobs for an idle worker."""

    async def enqueue(n: int) -> float:
        stamped.send(n)
        return time.time()

    with workers([command(1)], environment()) as running:
        waits = asyncio.run(singles(options, enqueue, running))
    return waited(options, waits, f"Redis, hiredis, {THREADS} threads, worker timeout {TIMEOUT} ms", "dramatiq")


def command(processes: int) -> list[str]:
    """Its worker processes, started with its own tool."""
    shape = ["--processes", str(processes), "--threads", str(THREADS)]
    return [sys.executable, "-P", "-m", "dramatiq", "tests.benchmarks.peers.dramatiq", *shape]


def environment() -> dict[str, str]:
    """Its settings that are variables of the environment."""
    return {"dramatiq_worker_timeout": str(TIMEOUT), "dramatiq_queue_prefetch": str(PREFETCH)}


if __name__ == "__main__":
    main(drain, latency)
