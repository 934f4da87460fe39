"""What workers have done, by minute and by hour: throughput, and how long jobs waited and ran. And how queues stood.

Nothing is counted when somebody asks: workers write what they have counted (see ``tally``) every few seconds into one
row for each minute, task and outcome, and the same for ten minutes and for the hour.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import zip_longest
from typing import Literal

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from outbox.connection import Link
from outbox.tally import BOUNDS, Counts, Key

Span = Literal["minute", "ten minutes", "hour"]
_SECONDS: Mapping[Span, int] = {"minute": 60, "ten minutes": 600, "hour": 3600}

MOST_RECORDED = 100_000
"""Jobs at most that are counted in a queue, once a minute."""

_WRITE = """
insert into outbox.statistic as known (seconds, starts_at, queue, task, outcome, count, waits, runs)
select span.seconds, date_bin(make_interval(secs => span.seconds), clock_timestamp(), 'epoch'), queue, task, outcome,
       count, waits::integer[], runs::integer[]
from unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::text[], $6::text[])
    as tally (queue, task, outcome, count, waits, runs)
cross join (values (60), (600), (3600)) as span (seconds)
order by span.seconds, queue, task, outcome
on conflict (seconds, starts_at, queue, task, outcome) do update set
    count = known.count + excluded.count, waits = outbox.add_counts(known.waits, excluded.waits),
    runs = outbox.add_counts(known.runs, excluded.runs)
"""

_READ = text(
    """
    select starts_at, queue, task, outcome, count, waits, runs from outbox.statistic
    where seconds = :seconds and starts_at >= :since and starts_at < :until
      and (cast(:queue as text) is null or queue = :queue) and (cast(:task as text) is null or task = :task)
    order by starts_at, queue, task, outcome
    """
)

_PRUNE = """
delete from outbox.statistic
where (seconds = 60 and starts_at < now() - interval '1 day')
   or (seconds = 600 and starts_at < now() - interval '7 days') or starts_at < now() - interval '100 days'
"""

# One worker writes the minute, whichever is the first.
_IS_RECORDED = "select from outbox.backlog where at = date_bin('1 minute', clock_timestamp(), 'epoch') limit 1"
_RECORD = """
insert into outbox.backlog (at, queue, ready, scheduled, running, waited)
select date_bin('1 minute', clock_timestamp(), 'epoch'), name, state.ready, state.scheduled, coalesce(running.count, 0),
       coalesce(extract(epoch from clock_timestamp() - state.oldest)::double precision, 0)
from (
    select outbox.waiting_queues() as name
    union select queue from outbox.live_job where lease_until is not null
    union select queue from outbox.backlog where at > now() - interval '3 minutes' and ready + scheduled + running > 0
) known
cross join lateral outbox.queue_state(known.name, $1) as state
left join (
    select queue as name, count(*)::integer as count from outbox.live_job where lease_until is not null group by queue
) running using (name)
on conflict (at, queue) do nothing
"""
_BACKLOG = text(
    """
    select date_bin(make_interval(secs => :step), at, 'epoch') as at, queue, max(ready) as ready,
           max(running) as running, max(waited) as waited
    from outbox.backlog where at >= :since and at < :until group by 1, 2 order by 1, 2
    """
)
_PRUNE_BACKLOG = "delete from outbox.backlog where at < now() - interval '8 days'"


@dataclass(frozen=True, slots=True)
class Point:
    """The attempts of a span of time that ended in the same way.

    :ivar outcome: succeeded, failed, cancelled, retried or snoozed.
    :ivar waits: how many waited how long, by bucket of ``tally.BOUNDS``.
    :ivar runs: how many ran how long.
    """

    starts_at: datetime
    queue: str
    task: str
    outcome: str
    count: int
    waits: Sequence[int]
    runs: Sequence[int]


async def write(link: Link, counted: Mapping[Key, Counts]) -> None:
    """Add what a worker has counted to the current minute and hour."""
    await link.fetch(
        _WRITE,
        [queue for queue, _, _ in counted],
        [task for _, task, _ in counted],
        [outcome for _, _, outcome in counted],
        [counts.count for counts in counted.values()],
        [_array(counts.waits) for counts in counted.values()],
        [_array(counts.runs) for counts in counted.values()],
    )


async def record(link: Link) -> None:
    """Write down how queues stand this minute, unless another worker has."""
    if not await link.fetch(_IS_RECORDED):
        await link.fetch(_RECORD, MOST_RECORDED)


async def prune(link: Link) -> None:
    """Forget minutes after a day, ten minutes after a week, hours after a hundred days, and backlogs after a week."""
    await link.fetch(_PRUNE)
    await link.fetch(_PRUNE_BACKLOG)


async def read(
    connection: AsyncSession | AsyncConnection,
    since: datetime,
    until: datetime,
    *,
    span: Span = "minute",
    queue: str | None = None,
    task: str | None = None,
) -> list[Point]:
    """What was done in a time, the oldest first.

    :param span: whether minutes are read, kept for a day, ten minutes, kept for a week, or hours, for a hundred days.
    """
    values = {"seconds": _SECONDS[span], "since": since, "until": until, "queue": queue, "task": task}
    return [Point(*row) for row in await connection.execute(_READ, values)]


@dataclass(frozen=True, slots=True)
class Backlog:
    """How a queue stood at worst in a span of time.

    :ivar ready: jobs that were due and waited; 100,000 may have been more.
    :ivar running: jobs that workers had claimed.
    :ivar waited: seconds for which the oldest had waited.
    """

    at: datetime
    queue: str
    ready: int
    running: int
    waited: float


async def backlog(
    connection: AsyncSession | AsyncConnection, since: datetime, until: datetime, *, step: int = 60
) -> list[Backlog]:
    """How queues stood in a time, the oldest first.

    :param step: seconds that each answer covers.
    """
    values = {"step": step, "since": since, "until": until}
    return [Backlog(*row) for row in await connection.execute(_BACKLOG, values)]


def quantile(counts: Sequence[int], share: float) -> float | None:
    """How many seconds that share of them did not exceed, by their buckets; None if there are none.

    :param share: 0.5 for the median.
    """
    total = sum(counts)
    if not total:
        return None
    reached, wanted = 0, share * total
    for n, count in enumerate(counts):
        reached += count
        if reached >= wanted:
            return BOUNDS[min(n, len(BOUNDS) - 1)]
    return BOUNDS[-1]


def add(counts: Iterable[Sequence[int]]) -> list[int]:
    """Element by element."""
    return list(map(sum, zip_longest(*counts, fillvalue=0)))


def _array(counts: Sequence[int]) -> str:
    last = max((n for n, count in enumerate(counts) if count), default=-1)
    return "{" + ",".join(map(str, counts[: last + 1])) + "}"
