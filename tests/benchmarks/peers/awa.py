"""Awa: a runtime in Rust that calls handlers in Python, its storage for queues, COPY, uvloop.

The settings, and why:

- The storage for queues, which its throughput comes from. After ``migrate`` a new database still has the older one,
  until a first worker has started: ``install_queue_storage`` turns to it at once, so that jobs can be enqueued before.
- ``enqueue_many_copy`` for all jobs in one call, its way for many.
- 1024 workers for the queue, its advice for jobs that do nothing: each is taken until the outcome is written. 256 are
  a quarter slower, 2048 no faster. Its defaults for the rest of the queue: it claims up to 512 jobs at once, each of
  which has a deadline of five minutes. A second claimer is no faster, no deadline is no faster either.
- One completion shard, by the variable that is for it. With 512 workers or more there are four by default, which write
  smaller batches: a quarter slower. A batch is 512 outcomes at most, its default; 1024 is no faster.
- Four enqueue shards, its first advice for a hot queue: a tenth faster, and then order is kept in each of them only.
- uvloop under the handlers: a little faster. Its own pool of ten connections, its default; twenty are no faster.
- LISTEN/NOTIFY, and the 200 milliseconds between two looks that are its default.
- A minute until it starts on the next part of its tables, where its default is a second. It empties a part soon after
  the last job there is done, and when that was is gone then. It makes no difference to the speed.
- ANALYZE after the jobs are enqueued, which is not measured: autovacuum would do it within a minute.
- Its defaults for the latency: 50 workers, one enqueue shard.

Completions are counted where it writes them, a row for a batch, with the total of those that it has removed. Its own
statistics and its view of finished jobs join each with its row of the queue: that loads the database, and takes many
seconds while its tables have no statistics.

It stores no results, only that a job succeeded; its handlers return nothing.
"""

import asyncio
import time
from dataclasses import dataclass

import uvloop
from awa import AsyncClient, Job

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

WORKERS = {"drain": 1024, "latency": 50}
ROTATE = {"drain": 60_000, "latency": 1000}
SHARDS = 4
COMPLETION = {"AWA_COMPLETION_SHARDS": "1"}

COMPLETED = """
    with removed as (
        select coalesce(sum(pruned_completed_count), 0)::bigint as count from awa.queue_terminal_rollups
    ), kept as (
        select completed_count as count, finalized_at from awa.receipt_completion_batches
        union all
        select 1, finalized_at from awa.done_entries where state = 'completed'
    )
    select
        (select count from removed) + coalesce(sum(count), 0)::bigint as count,
        (select count from removed) as removed,
        extract(epoch from max(finalized_at))::float8 as finished
    from kept
"""
"""How many jobs are completed, how many of them it has removed, and when the last of the others was."""


@dataclass
class Noop:
    """A job that does nothing."""

    n: int


@dataclass
class Stamp:
    """A job that notes when it started."""

    n: int


def drain(options: Options) -> Result:
    """Enqueue all, then work them off."""
    return uvloop.run(_drain(options))


async def _drain(options: Options) -> Result:
    async with AsyncClient(address(options)) as client:
        await install(client)
        await execute(client, "insert into awa.queue_meta (queue, enqueue_shards) values ('drain', $1)", SHARDS)
        began = time.time()
        await client.enqueue_many_copy([Noop(n) for n in range(options.jobs)], queue="drain")
        enqueuing = time.time() - began
        await execute(client, "analyze")  # as autovacuum does within a minute
        look: dict[str, float] = {}
        with workers([same_program(options)] * options.workers, COMPLETION) as running:

            async def done() -> bool:
                look.update(await completed(client))
                return look["count"] >= options.jobs

            seen = await until(done, running)
    assert look["count"] == options.jobs, f"{look['count']} of {options.jobs} completed"
    finished = seen if look["removed"] else look["finished"]
    settings = (
        f"queue storage, uvloop, {WORKERS['drain']} workers for the queue, {SHARDS} enqueue shards, "
        "1 completion shard, LISTEN/NOTIFY; results cannot be stored"
    )
    return drained(options, enqueuing, finished, settings, "awa-pg")


def latency(options: Options) -> Result:
    """Single jobs for an idle worker."""
    return uvloop.run(_latency(options))


async def _latency(options: Options) -> Result:
    async with AsyncClient(address(options)) as client:
        await install(client)

        async def enqueue(n: int) -> float:
            await client.insert(Stamp(n), queue="latency")
            return time.time()

        with workers([same_program(options)]) as running:
            waits = await singles(options, enqueue, running)
    settings = f"queue storage, uvloop, {WORKERS['latency']} workers for the queue, LISTEN/NOTIFY"
    return waited(options, waits, settings, "awa-pg")


def address(options: Options) -> str:
    """The URL for its driver, which does not take one without a host, not even for a socket."""
    return options.url.replace("@/", "@localhost/").replace(":///", "://localhost/")


async def install(client: AsyncClient) -> None:
    """Its tables, and its storage for queues."""
    await client.migrate()
    await client.install_queue_storage()


async def execute(client: AsyncClient, statement: str, *values: int) -> None:
    """In a transaction of its own."""
    async with await client.transaction() as transaction:
        await transaction.execute(statement, *values)


async def completed(client: AsyncClient) -> dict[str, float]:
    """The one row of ``COMPLETED``."""
    async with await client.transaction() as transaction:
        row: dict[str, float] = await transaction.fetch_one(COMPLETED)
        return row


def worker(options: Options) -> None:
    """One worker process."""
    uvloop.run(_worker(options))


async def _worker(options: Options) -> None:
    async with AsyncClient(address(options)) as client:

        @client.task(Noop, queue=options.kind)
        async def noop(job: Job) -> None:
            started()

        @client.task(Stamp, queue=options.kind)
        async def stamped(job: Job) -> None:
            moment = time.time()
            stamp(job.args.n, moment)

        at_the_gate(options)
        queues = [(options.kind, WORKERS[options.kind])]
        await client.start(queues, queue_storage_queue_rotate_interval_ms=ROTATE[options.kind])
        await asyncio.Event().wait()


if __name__ == "__main__":
    main(drain, latency, worker)
