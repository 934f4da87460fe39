"""Schedules: what is to be enqueued again and again, and what a person may say of that. How they fire: see ``ticks``.

Code declares schedules (``Outbox.cron``), and every worker writes those of its code when it starts. What a person says
here stands above that until it is deleted; pausing and firing by hand is for both kinds.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, Literal, get_args
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from outbox import enqueue, payload
from outbox.backoff import seconds
from outbox.cron import Cron
from outbox.errors import ScheduleNotFound
from outbox.job import State
from outbox.newjob import MAX_NAME, NewJob, Options, is_name

CatchUp = Literal["skip", "latest", "all"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """What is enqueued again and again, and when.

    :param name: 1 to 200 printable characters; a schedule is known by it.
    :param job: the job to enqueue, made by ``task.job(...)``; each tick gets one of its own. Not with secrets.
    :param cron: when it fires: see ``cron``.
    :param tz: the time zone that this is meant in.
    :param catch_up: of the ticks that were missed because no worker ran: ``skip`` them all, make up for the ``latest``
        by one job, or for ``all``, each by its own. A minute late is not missed.
    :param jitter: seconds or a timedelta; each job is put off by a random part of it.
    :param moment: the argument, if any, that each job gets the moment in that it stands for: an aware datetime, as the
        expression names it, however late the job runs.
    """

    name: str
    job: NewJob
    cron: str
    tz: str = "UTC"
    catch_up: CatchUp = "latest"
    jitter: float | timedelta = 0.0
    moment: str | None = None

    def __post_init__(self) -> None:
        if not is_name(self.name):
            raise ValueError(f"name: must be 1 to {MAX_NAME} printable characters")
        if self.catch_up not in get_args(CatchUp):
            raise ValueError(f"catch_up: {self.catch_up!r}; must be one of {', '.join(get_args(CatchUp))}")
        options = self.job.options
        if options.key is not None or options.run_at or seconds(options.delay) or options.passable or options.after:
            raise ValueError("job: a schedule says when its jobs run: not with key, delay, run_at, passable or after")
        if self.job.is_sealed:
            raise ValueError("job: its secrets open for itself, and each tick gets a job of its own: not with secrets")
        seconds(self.jitter)
        Cron(self.cron, self.tz)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduled:
    """A schedule as it stands in the database.

    :ivar declared: whether code has said it, or a person.
    :ivar next_at: when it fires next; None if never again.
    :ivar last_at: the latest tick that it has fired for.
    """

    name: str
    cron: str
    tz: str
    catch_up: CatchUp
    jitter: float
    task: str
    payload: dict[str, Any]
    queue: str
    declared: bool
    paused_at: datetime | None
    next_at: datetime | None
    last_at: datetime | None

    def upcoming(self, count: int) -> list[datetime]:
        """The next moments at which it fires, in UTC; none while it is paused."""
        if self.next_at is None or self.paused_at is not None:
            return []
        return list(islice(Cron(self.cron, self.tz).after(self.next_at - timedelta(microseconds=1)), count))


@dataclass(frozen=True, slots=True)
class Tick:
    """A schedule has fired.

    :ivar nominal: the moment that its expression names.
    :ivar fired_at: when it really was.
    :ivar state: how its job stands; None if it has been deleted since.
    """

    schedule: str
    nominal: datetime
    fired_at: datetime
    job_id: UUID
    state: State | None


_COLUMNS = "name, expression, tz, catch_up, jitter, task, payload::text, queue, declared, paused_at, next_at, last_at"
_NOW = text("select clock_timestamp()")
_GET = text(f"select {_COLUMNS} from outbox.schedule where name = :name")
_LOCK = text(f"select {_COLUMNS} from outbox.schedule where name = :name for update")
_ALL = text(f"select {_COLUMNS} from outbox.schedule order by name")
_HISTORY = text(
    """
    select schedule.name as schedule, tick.nominal, tick.fired_at, tick.job_id, job.state
    from outbox.schedule
    cross join lateral (
        select nominal, fired_at, job_id from outbox.tick
        where tick.schedule = schedule.name order by nominal desc limit :each
    ) tick
    left join lateral (select state from outbox.job where job.id = tick.job_id) job on true
    where cast(:name as text) is null or schedule.name = :name
    order by schedule.name, tick.nominal
    """
)
_DELETE = text("delete from outbox.schedule where name = :name returning name")
_PAUSE = text(
    "update outbox.schedule set paused_at = coalesce(paused_at, clock_timestamp()) where name = :name returning name"
)
_RESUME = text("update outbox.schedule set paused_at = null, next_at = :next_at where name = :name")
_JOB = text(
    """
    select task, (payload || outbox.moment_argument(moment, clock_timestamp()))::text as payload, version, queue,
           priority, max_attempts, tags::text, group_key, limit_key, tenant
    from outbox.schedule where name = :name
    """
)
_PUT = text(
    """
    insert into outbox.schedule (
        name, expression, tz, catch_up, jitter, task, payload, queue, priority, max_attempts, tags, group_key,
        limit_key, tenant, moment, version, declared, next_at
    ) values (
        :name, :expression, :tz, :catch_up, :jitter, :task, cast(cast(:payload as text) as jsonb), :queue, :priority,
        :max_attempts, cast(cast(:tags as text) as jsonb), :group_key, :limit_key, :tenant, :moment,
        :version, false, :next_at
    )
    on conflict (name) do update set
        expression = excluded.expression, tz = excluded.tz, catch_up = excluded.catch_up, jitter = excluded.jitter,
        task = excluded.task, payload = excluded.payload, queue = excluded.queue, priority = excluded.priority,
        max_attempts = excluded.max_attempts, tags = excluded.tags, group_key = excluded.group_key,
        limit_key = excluded.limit_key, tenant = excluded.tenant, moment = excluded.moment,
        version = excluded.version, declared = false, next_at = excluded.next_at
    """
)


async def put(connection: AsyncSession | AsyncConnection, schedule: Schedule) -> None:
    """Create a schedule or change it. It fires from now on; whether it is paused stays as it is."""
    row = values(schedule) | {"next_at": next_after(schedule, await _now(connection))}
    await connection.execute(_PUT, row)


async def delete(connection: AsyncSession | AsyncConnection, name: str) -> None:
    """Delete a schedule; the jobs that it has enqueued stay. One that code declares is back when a worker starts.

    :raises ScheduleNotFound: if there is none of this name.
    """
    if (await connection.execute(_DELETE, {"name": name})).scalar() is None:
        raise ScheduleNotFound(name)


async def pause(connection: AsyncSession | AsyncConnection, name: str) -> None:
    """Have it fire no more until it is resumed.

    :raises ScheduleNotFound: if there is none of this name.
    """
    if (await connection.execute(_PAUSE, {"name": name})).scalar() is None:
        raise ScheduleNotFound(name)


async def resume(connection: AsyncSession | AsyncConnection, name: str) -> None:
    """Have it fire again from now on. What it would have fired for meanwhile is not made up for.

    :raises ScheduleNotFound: if there is none of this name.
    """
    row = (await connection.execute(_LOCK, {"name": name})).mappings().first()
    if row is None:
        raise ScheduleNotFound(name)
    if row["paused_at"] is not None:
        next_at = next(Cron(row["expression"], row["tz"]).after(await _now(connection)), None)
        await connection.execute(_RESUME, {"name": name, "next_at": next_at})


async def fire(connection: AsyncSession | AsyncConnection, name: str) -> NewJob:
    """Enqueue its job now, beside its ticks, paused or not.

    :raises ScheduleNotFound: if there is none of this name.
    """
    row = (await connection.execute(_JOB, {"name": name})).mappings().first()
    if row is None:
        raise ScheduleNotFound(name)
    options = Options(
        queue=row["queue"],
        priority=row["priority"],
        max_attempts=row["max_attempts"],
        tags=json.loads(row["tags"] or "[]"),
        group=row["group_key"],
        limit_key=row["limit_key"],
        tenant=row["tenant"],
    )
    job = NewJob(row["task"], row["payload"], options, version=row["version"])
    [written] = await enqueue.add_many(connection, [job])
    return written


async def get(connection: AsyncSession | AsyncConnection, name: str) -> Scheduled | None:
    """The schedule, or None if there is none of this name."""
    row = (await connection.execute(_GET, {"name": name})).mappings().first()
    return None if row is None else _scheduled(row)


async def all_of_them(connection: AsyncSession | AsyncConnection) -> list[Scheduled]:
    """All schedules, by name."""
    return [_scheduled(row) for row in (await connection.execute(_ALL)).mappings()]


async def history(connection: AsyncSession | AsyncConnection, *, name: str | None = None, each: int = 20) -> list[Tick]:
    """The latest ticks of one schedule, or of all, by name, the oldest first.

    :param each: how many of each at most.
    """
    rows = (await connection.execute(_HISTORY, {"name": name, "each": each})).mappings()
    return [Tick(**dict(row) | {"state": row["state"] and State(row["state"])}) for row in rows]


def next_after(schedule: Schedule, now: datetime) -> datetime | None:
    """When it fires first after that moment; None if never again."""
    return next(Cron(schedule.cron, schedule.tz).after(now), None)


def values(schedule: Schedule) -> dict[str, Any]:
    """Its row, but for when it fires next."""
    options = schedule.job.options
    return {
        "name": schedule.name,
        "expression": schedule.cron,
        "tz": schedule.tz,
        "catch_up": schedule.catch_up,
        "jitter": seconds(schedule.jitter),
        "task": schedule.job.task,
        "payload": schedule.job.payload,
        "queue": schedule.job.queue,
        "priority": options.priority,
        "max_attempts": options.max_attempts,
        "tags": json.dumps(list(options.tags)) if options.tags else None,
        "group_key": options.group,
        "limit_key": options.limit_key,
        "tenant": options.tenant,
        "moment": schedule.moment,
        "version": schedule.job.version,
    }


def _scheduled(row: Mapping[Any, Any]) -> Scheduled:
    values = dict(row)
    return Scheduled(**values | {"cron": values.pop("expression"), "payload": payload.read(values["payload"])})


async def _now(connection: AsyncSession | AsyncConnection) -> datetime:
    moment: datetime = (await connection.execute(_NOW)).scalar_one()
    return moment
