"""What a person may say of a queue. It needs no declaration: a queue is whatever jobs and workers name so."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from outbox.newjob import MAX_NAME, is_name

_PAUSE = text(
    """
    insert into outbox.queue (name, paused_at) values (:name, clock_timestamp())
    on conflict (name) do update set paused_at = coalesce(queue.paused_at, excluded.paused_at)
    """
)
_RESUME = text("update outbox.queue set paused_at = null where name = :name")
_CEILING = text(
    """
    insert into outbox.queue (name, ceiling) values (:name, :ceiling)
    on conflict (name) do update set ceiling = excluded.ceiling
    """
)
MOST = 10_000
"""Jobs at most that are counted in a queue."""

_STATES = text(
    """
    with serving as (
        select queue.key as name, count(*)::integer as workers, sum(queue.value::integer)::integer as slots
        from outbox.worker, jsonb_each_text(queues) as queue
        where seen_at > clock_timestamp() - make_interval(secs => lease) and stopping_at is null
        group by queue.key
    ), done as (
        select queue as name, sum(count)::double precision / 300 as pace from outbox.statistic
        where seconds = 60 and starts_at > now() - interval '5 minutes' group by queue
    ), running as (
        select queue as name, count(*)::integer as count from outbox.live_job
        where lease_until is not null group by queue
    ), known as (
        select unnest(cast(:names as text[])) as name
        union select name from (
            select outbox.waiting_queues() as name union select name from serving union select name from done
            union select name from running union select name from outbox.queue
        ) every where cast(:names as text[]) is null
    )
    select name, queue.paused_at, queue.ceiling, state.ready, state.scheduled, coalesce(running.count, 0) as running,
           state.oldest, coalesce(serving.workers, 0) as workers, coalesce(serving.slots, 0) as slots,
           coalesce(done.pace, 0) as pace
    from known
    cross join lateral outbox.queue_state(known.name, :most) as state
    left join outbox.queue using (name)
    left join serving using (name)
    left join done using (name)
    left join running using (name)
    order by name
    """
)
_ALL = text("select name, paused_at, ceiling from outbox.queue order by name")


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue that a person has said something of.

    :ivar paused_at: since when none of its jobs is claimed; None if they are.
    :ivar ceiling: how many jobs may wait in it; None for any number.
    """

    name: str
    paused_at: datetime | None
    ceiling: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueState:
    """How a queue stands. Jobs that wait for others, in a group or a flow, do not count.

    :ivar ready: jobs that are due and wait; 10,000 may be more.
    :ivar scheduled: jobs that are not due yet; 10,000 may be more.
    :ivar running: jobs that workers have claimed.
    :ivar oldest: when the one was due that has waited longest; None if none waits.
    :ivar slots: of all workers that serve it.
    :ivar pace: attempts that ended in a second, on the average of the last five minutes.
    """

    name: str
    paused_at: datetime | None
    ceiling: int | None
    ready: int
    scheduled: int
    running: int
    oldest: datetime | None
    workers: int
    slots: int
    pace: float


async def pause(connection: AsyncSession | AsyncConnection, name: str) -> None:
    """Have no worker claim jobs of this queue from the commit on; those that run go on, and enqueuing goes on too.

    :raises ValueError: if no queue can be called so.
    """
    if not is_name(name):
        raise ValueError(f"queue: must be 1 to {MAX_NAME} printable characters")
    await connection.execute(_PAUSE, {"name": name})


async def resume(connection: AsyncSession | AsyncConnection, name: str) -> None:
    """Have workers claim jobs of this queue again; nothing happens if it is not paused."""
    if is_name(name):
        await connection.execute(_RESUME, {"name": name})


async def set_ceiling(connection: AsyncSession | AsyncConnection, name: str, ceiling: int | None) -> None:
    """Refuse further jobs of this queue, by ``QueueFull``, while so many wait in it; None takes the ceiling away.

    It is as exact as it must be: transactions that are open at the same time do not see each other's jobs. What waits
    for others, in a group or a flow, does not count. Enqueuing then looks at as many index entries as jobs wait.

    :param ceiling: 0 to 1,000,000.
    :raises ValueError: if it is not, or no queue can be called so.
    """
    if not is_name(name):
        raise ValueError(f"queue: must be 1 to {MAX_NAME} printable characters")
    if ceiling is not None and not 0 <= ceiling <= 1_000_000:
        raise ValueError(f"ceiling: {ceiling}; must be 0 to 1,000,000")
    await connection.execute(_CEILING, {"name": name, "ceiling": ceiling})


async def states(connection: AsyncSession | AsyncConnection, names: Sequence[str] | None = None) -> list[QueueState]:
    """How queues stand, by name.

    :param names: of which, whether they have anything or not; every one that has jobs, workers, or something said of it
        unless given.
    """
    values = {"most": MOST, "names": None if names is None else list(names)}
    return [QueueState(**row) for row in (await connection.execute(_STATES, values)).mappings()]


async def spoken_of(connection: AsyncSession | AsyncConnection) -> list[Queue]:
    """The queues that a person has said something of, by name."""
    return [Queue(row.name, row.paused_at, row.ceiling) for row in await connection.execute(_ALL)]
