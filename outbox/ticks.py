"""Firing schedules: one job for every moment that a cron expression names, whatever workers and clocks do.

Any worker that knows the task fires a schedule that is due: in one transaction it locks the row, writes a tick and a
job for each moment, and sets the next one. The lock lets one worker do so at a time, and the tick's primary key keeps
a moment from being fired for twice. All times are the database's: a clock that is set back delays the next tick, and
one that is set forward brings it on, once.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from itertools import islice, takewhile

from outbox import events, schedule
from outbox.connection import Link
from outbox.cron import Cron
from outbox.schedule import CatchUp, Schedule

PUNCTUAL = timedelta(seconds=60)
"""A tick that is fired for within this time has not been missed."""

AT_ONCE = 500
"""Ticks at most that one schedule is fired for in one transaction."""

DUE = 20
"""Schedules at most that are fired in one transaction."""


_WITHDRAW = "delete from outbox.schedule where declared and task = any ($1::text[]) and name <> all ($2::text[])"
_DECLARE = """
insert into outbox.schedule as known (
    name, expression, tz, catch_up, jitter, task, payload, queue, priority, max_attempts, tags, group_key, limit_key,
    tenant, moment, version, declared, next_at
)
select name, expression, tz, catch_up, jitter, task, payload::jsonb, queue, priority, max_attempts, tags::jsonb,
       group_key, limit_key, tenant, moment, version, true, next_at
from unnest(
    $1::text[], $2::text[], $3::text[], $4::text[], $5::double precision[], $6::text[], $7::text[], $8::text[],
    $9::smallint[], $10::smallint[], $11::text[], $12::text[], $13::text[], $14::text[], $15::text[], $16::smallint[],
    $17::timestamptz[]
) as given (
    name, expression, tz, catch_up, jitter, task, payload, queue, priority, max_attempts, tags, group_key, limit_key,
    tenant, moment, version, next_at
)
order by name
on conflict (name) do update set
    expression = excluded.expression, tz = excluded.tz, catch_up = excluded.catch_up, jitter = excluded.jitter,
    task = excluded.task, payload = excluded.payload, queue = excluded.queue, priority = excluded.priority,
    max_attempts = excluded.max_attempts, tags = excluded.tags, group_key = excluded.group_key,
    limit_key = excluded.limit_key, tenant = excluded.tenant, moment = excluded.moment,
    version = excluded.version,
    next_at = case when (known.expression, known.tz) = (excluded.expression, excluded.tz) then known.next_at
                   else excluded.next_at end
where known.declared
"""
_DUE = """
select name, expression, tz, catch_up, next_at, clock_timestamp() as now
from outbox.schedule
where next_at <= now() and paused_at is null and task = any ($1::text[])
order by next_at limit $2
for update skip locked
"""
_NEXT = """
select extract(epoch from min(next_at) - clock_timestamp())::double precision as seconds
from outbox.schedule where paused_at is null and task = any ($1::text[])
"""
_POSTPONE = "update outbox.schedule set next_at = now() + interval '1 hour' where name = any ($1::text[])"
_FIRE = """
with ticked as (
    insert into outbox.tick (schedule, nominal, job_id)
    select schedule, nominal, outbox.uuid7() from unnest($1::text[], $2::timestamptz[]) as tick (schedule, nominal)
    order by schedule, nominal
    on conflict do nothing
    returning schedule, nominal, job_id
), moved as (
    update outbox.schedule set next_at = moved.next_at, last_at = coalesce(moved.last_at, schedule.last_at)
    from unnest($3::text[], $4::timestamptz[], $5::timestamptz[]) as moved (name, next_at, last_at)
    where schedule.name = moved.name
)
insert into outbox.live_job (
    id, task, queue, payload, version, priority, run_at, max_attempts, tags, group_key, blocked, limit_key, tenant,
    limited
)
select ticked.job_id, task, queue,
       payload || outbox.moment_argument(moment, nominal), version, priority,
       greatest(nominal, clock_timestamp()) + make_interval(secs => jitter * random()), max_attempts,
       tags, group_key, case when group_key is not null then 'new' end, limit_key, tenant,
       task = any (array(select name from outbox.job_limit where scope = 'task'))
           or queue = any (array(select name from outbox.job_limit where scope = 'queue'))
from ticked join outbox.schedule on schedule.name = ticked.schedule
order by ticked.nominal
returning id
"""


async def declare(link: Link, tasks: Sequence[str], schedules: Iterable[Schedule]) -> None:
    """Write what the code of a worker declares, and delete what it declared once for these tasks and does not any more.

    The next tick of one that has not changed stays as it is, so what was missed is made up for as it says.
    """
    given = list(schedules)
    async with link.transaction():
        await link.fetch(_WITHDRAW, list(tasks), [each.name for each in given])
        if given:
            now = (await link.fetch("select clock_timestamp() as now"))[0]["now"]
            rows = [
                tuple((schedule.values(each) | {"next_at": schedule.next_after(each, now)}).values()) for each in given
            ]
            await link.fetch(_DECLARE, *map(list, zip(*rows, strict=True)))


async def fire_due(link: Link, tasks: Sequence[str]) -> int:
    """Fire every schedule that is due, of tasks that this worker knows; how many jobs that made."""
    async with link.transaction():
        due = await link.fetch(_DUE, list(tasks), DUE)
        if not due:
            return 0
        ticks: list[tuple[str, datetime]] = []
        moves: list[tuple[str, datetime | None, datetime | None]] = []
        wrong: list[str] = []
        for row in due:
            try:
                cron = Cron(row["expression"], row["tz"])
            except ValueError as exc:  # written by hand, or by a host that knows other time zones
                events.emit(events.ERROR, "schedule_invalid", schedule=row["name"], error=exc)
                wrong.append(row["name"])
                continue
            moments, next_at = _ticks(cron, row["catch_up"], row["next_at"], row["now"])
            ticks += [(row["name"], moment) for moment in moments]
            moves.append((row["name"], next_at, max(moments, default=None)))
        if wrong:
            await link.fetch(_POSTPONE, wrong)
        if not moves:
            return 0
        names, nominals = [name for name, _ in ticks], [moment for _, moment in ticks]
        return len(await link.fetch(_FIRE, names, nominals, *map(list, zip(*moves, strict=True))))


async def seconds_to_next(link: Link, tasks: Sequence[str]) -> float | None:
    """Seconds until a schedule of these tasks is due, below 0 if one is; None if none ever is."""
    answer: float | None = (await link.fetch(_NEXT, list(tasks)))[0]["seconds"]
    return answer


def _ticks(cron: Cron, catch_up: CatchUp, next_at: datetime, now: datetime) -> tuple[list[datetime], datetime | None]:
    """The moments to fire for, of those from ``next_at`` on that have come; and the one that is next then."""
    if catch_up == "all":
        came = takewhile(lambda each: each <= now, cron.after(next_at - timedelta(microseconds=1)))
        moments = list(islice(came, AT_ONCE))
        return moments, next(cron.after(max(moments, default=now)), None)
    latest = cron.latest(now)
    moments = [latest] if latest is not None and latest >= next_at else []
    if catch_up == "skip":
        moments = [each for each in moments if now - each <= PUNCTUAL]
    return moments, next(cron.after(now), None)
