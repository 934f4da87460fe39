"""What workers have done, by minute and by hour: throughput, and how long jobs waited and ran.

Nothing is counted when somebody asks: workers write what they have counted (see ``tally``) every few seconds into one
row for each minute, task and outcome, and the same for the hour.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from outbox.connection import Link
from outbox.tally import BOUNDS, Counts, Key

Span = Literal["minute", "hour"]
_SECONDS: Mapping[Span, int] = {"minute": 60, "hour": 3600}

_WRITE = """
insert into outbox.statistic as known (seconds, starts_at, queue, task, outcome, count, waits, runs)
select span.seconds, date_bin(make_interval(secs => span.seconds), clock_timestamp(), 'epoch'), queue, task, outcome,
       count, waits::integer[], runs::integer[]
from unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::text[], $6::text[])
    as tally (queue, task, outcome, count, waits, runs)
cross join (values (60), (3600)) as span (seconds)
order by span.seconds, queue, task, outcome
on conflict (seconds, starts_at, queue, task, outcome) do update set
    count = known.count + excluded.count, waits = outbox.add_counts(known.waits, excluded.waits),
    runs = outbox.add_counts(known.runs, excluded.runs)
"""

_READ = text(
    """
    select date_bin(make_interval(secs => :step), starts_at, 'epoch') as starts_at, queue, task, outcome,
           sum(count)::bigint as attempts, array_agg(waits::text) as waits, array_agg(runs::text) as runs
    from outbox.statistic
    where seconds = :seconds and starts_at >= :since and starts_at < :until
      and (cast(:queue as text) is null or queue = :queue) and (cast(:task as text) is null or task = :task)
    group by 1, 2, 3, 4 order by 1, 2, 3, 4
    """
)

_PRUNE = """
delete from outbox.statistic
where (seconds = 60 and starts_at < now() - interval '3 days') or starts_at < now() - interval '100 days'
"""


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


async def prune(link: Link) -> None:
    """Forget minutes after three days, and hours after a hundred."""
    await link.fetch(_PRUNE)


async def read(
    connection: AsyncSession | AsyncConnection,
    since: datetime,
    until: datetime,
    *,
    span: Span = "minute",
    step: int | None = None,
    queue: str | None = None,
    task: str | None = None,
) -> list[Point]:
    """What was done in a time, the oldest first.

    :param span: whether minutes are read, kept for three days, or hours, kept for a hundred.
    :param step: seconds that each point covers; as the span unless given.
    """
    values = {
        "seconds": _SECONDS[span],
        "step": step or _SECONDS[span],
        "since": since,
        "until": until,
        "queue": queue,
        "task": task,
    }
    return [
        Point(row.starts_at, row.queue, row.task, row.outcome, row.attempts, _sum(row.waits), _sum(row.runs))
        for row in await connection.execute(_READ, values)
    ]


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


def add(counts: Sequence[Sequence[int]]) -> list[int]:
    """Element by element."""
    longest = max(map(len, counts), default=0)
    return [sum(each[n] for each in counts if n < len(each)) for n in range(longest)]


def _array(counts: Sequence[int]) -> str:
    last = max((n for n, count in enumerate(counts) if count), default=-1)
    return "{" + ",".join(map(str, counts[: last + 1])) + "}"


def _sum(arrays: Sequence[str]) -> list[int]:
    return add([[int(each) for each in array.strip("{}").split(",") if each] for array in arrays])
