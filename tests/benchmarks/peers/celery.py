"""Celery over Redis: a prefork pool, acknowledged early, results in Redis.

The settings, and why:

- Prefork with two child processes for each worker: one for each core of a small machine. Other numbers
  have not been tried.
- ``worker_prefetch_multiplier`` 64 instead of 4: short jobs want more fetched ahead. Not swept.
- ``-O fair`` is the default; acknowledged early (``task_acks_late`` off), as it is by default.
- No gossip, no mingle, no heartbeats between workers and no events: they cost messages, and a single
  worker needs none of them.
- hiredis is installed, which the Redis client then reads answers with.
- Jobs are sent one by one on one connection, for it has no call for many.

Results are stored in Redis, JSON, for a day (its default).
"""

import asyncio
import sys
import time
from typing import Any

import redis as client
from celery import Celery

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

CONCURRENCY = 2
PREFETCH = 64

app = Celery("peer", broker=url(), backend=url())
app.conf.update(
    broker_connection_retry_on_startup=True,
    task_acks_late=False,
    worker_prefetch_multiplier=PREFETCH,
    worker_hijack_root_logger=False,
)


@app.task(name="noop")
def noop(n: int) -> dict[str, int]:
    """The least that a job with an argument and a stored result can do."""
    started()
    return {"ok": n}


@app.task(name="stamp", ignore_result=True)
def stamped(n: int) -> None:
    """Notes when it started."""
    moment = time.time()
    stamp(n, moment)


def drain(options: Options) -> Result:
    """Enqueue all, then work them off."""
    began = time.time()
    with app.producer_pool.acquire() as producer:
        for n in range(options.jobs):
            noop.apply_async((n,), producer=producer)
    enqueuing = time.time() - began
    link = client.Redis.from_url(options.url)

    async def done() -> bool:
        # The waiting, those that are fetched and not acknowledged, and two keys that are no results.
        return link.llen("celery") == 0 and link.dbsize() >= options.jobs and results(link) >= options.jobs

    with workers([command(n) for n in range(options.workers)]) as running:
        finished = asyncio.run(until(done, running, every=0.02))
    settings = (
        f"Redis, prefork {CONCURRENCY}, prefetch multiplier {PREFETCH}, acknowledged early; results are stored (Redis)"
    )
    return drained(options, enqueuing, finished, settings, "celery")


def results(link: Any) -> int:
    """How many results are stored: the keys but for those of the broker."""
    of_broker = sum(link.exists(key) for key in ("celery", "unacked", "unacked_index", "unacked_mutex"))
    return int(link.dbsize()) - int(of_broker) - len(link.keys("_kombu*"))


def latency(options: Options) -> Result:
    """Single jobs for an idle worker."""

    async def enqueue(n: int) -> float:
        stamped.apply_async((n,))
        return time.time()

    with workers([command(0)]) as running:
        waits = asyncio.run(singles(options, enqueue, running))
    return waited(options, waits, f"Redis, prefork {CONCURRENCY}, acknowledged early", "celery")


def command(n: int) -> list[str]:
    """A worker, started with its own tool."""
    shape = ["--concurrency", str(CONCURRENCY), "--hostname", f"worker{n}@%h", "--loglevel", "WARNING"]
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    return [sys.executable, "-P", "-m", "celery", "--app", "tests.benchmarks.peers.celery", "worker", *shape, *quiet]


if __name__ == "__main__":
    main(drain, latency)
