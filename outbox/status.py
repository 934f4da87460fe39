"""Answer questions about jobs: one, or a page of them. Reads only, through the view ``outbox.job``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Text,
    and_,
    any_,
    bindparam,
    cast,
    false,
    literal_column,
    or_,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from outbox import payload
from outbox.job import Job, State
from outbox.table import job

MAX_PAGE = 200

# JSON is read as text and decoded row by row, for a driver that fails on one value fails the whole page.
_JSON = tuple(each.name for each in job.columns if isinstance(each.type, JSONB))
_COLUMNS = tuple(cast(each, Text).label(each.name) if each.name in _JSON else each for each in job.columns)

# The one whose turn it is, or else the first of those that wait for theirs.
_BLOCKER = text(
    """
    select coalesce(
        (select id from outbox.live_job where group_key = :group and blocked is null),
        (select id from outbox.live_job where group_key = :group and blocked in ('new', 'group') and id < :id
         order by id limit 1)
    )
    """
)

_BEFORE = text("select after_id from outbox.dependency where job_id = :id and not met order by position limit 1")


_BY_INDEX = text(
    """
    select set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true),
           set_config('enable_sort', 'off', true), set_config('max_parallel_workers_per_gather', '0', true),
           set_config('statement_timeout', coalesce(:patience, current_setting('statement_timeout')), true)
    """
)

SEARCHED = 50_000
"""Jobs at most that a page of a filter without an index looks at; the next page goes on from there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """Which jobs; each field that is not empty narrows, and within a field any value will do.

    :param key: the unique key.
    :param group: the group whose jobs run in order.
    :param batch: the batch they belong to.
    :param tenant: whose jobs alone are seen.
    :param arguments: what their arguments contain, nested as they are: ``{"order": {"id": 42}}``.
    :param created_after: from this aware datetime on, by the time in their ids.
    :param created_before: before this aware datetime.
    """

    states: Sequence[State] = ()
    queues: Sequence[str] = ()
    tasks: Sequence[str] = ()
    tags: Sequence[str] = ()
    key: str | None = None
    group: str | None = None
    batch: UUID | None = None
    tenant: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    created_after: datetime | None = None
    created_before: datetime | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Jobs, newest first.

    :ivar next: where the next page starts: pass it as ``before``; None at the end.
    :ivar searched: whether the search was cut short, and there may be older ones although the page is not full.
    """

    jobs: list[Job]
    next: UUID | None
    searched: bool = False


async def get(connection: AsyncSession | AsyncConnection, id: UUID, *, tenant: str | None = None) -> Job | None:
    """The job, or None if there is none (any more).

    :param tenant: whose jobs alone are seen; those of everybody unless given.
    """
    statement = select(*_COLUMNS).where(job.c.id == id)
    if tenant is not None:
        statement = statement.where(job.c.tenant == tenant)
    row = (await connection.execute(statement)).mappings().first()
    return None if row is None else _job(row)


async def read_by_index(connection: AsyncSession | AsyncConnection, *, patience: float | None = None) -> None:
    """Have whatever is read in the rest of this transaction be read by indexes and in their order.

    :param patience: seconds that a statement may take; as the database says unless given.

    The statistics of tables of jobs are always stale, and by these the planner would rather read ten million rows and
    sort them than walk an index to the fifty that are wanted.
    """
    milliseconds = None if patience is None else str(int(patience * 1000))
    await connection.execute(_BY_INDEX, {"patience": milliseconds})


async def several(connection: AsyncSession | AsyncConnection, ids: Sequence[UUID]) -> list[Job]:
    """Those of the jobs that there are, in no order."""
    wanted = job.c.id == any_(bindparam("ids", list(ids), type_=ARRAY(job.c.id.type)))
    return [_job(row) for row in (await connection.execute(select(*_COLUMNS).where(wanted))).mappings()]


async def claimed_by(connection: AsyncSession | AsyncConnection, worker: UUID) -> list[Job]:
    """What a worker has claimed just now, the longest first."""
    mine = and_(_in_state([State.RUNNING]), job.c.worker_id == worker)
    statement = select(*_COLUMNS).where(mine).order_by(job.c.started_at).limit(MAX_PAGE)
    return [_job(row) for row in (await connection.execute(statement)).mappings()]


async def blocker(connection: AsyncSession | AsyncConnection, job: Job) -> UUID | None:
    """The job that this one waits for: one that it comes after, or one of its group; None if it waits for none."""
    if job.blocked is None:
        return None
    statement = _BEFORE if job.blocked == "after" else _BLOCKER
    found: UUID | None = (await connection.execute(statement, {"group": job.group_key, "id": job.id})).scalar()
    return found


async def page(
    connection: AsyncSession | AsyncConnection, wanted: JobFilter, *, limit: int = 50, before: UUID | None = None
) -> Page:
    """Jobs by filter, newest first by the time in their ids; no totals, which no queue can count cheaply.

    Where no index serves the filter, a page looks at so many jobs and no more: among millions it may be empty, and the
    next one goes on from there.

    :param limit: 1 to 200.
    :param before: the ``next`` of the page before this one.
    """
    limit = max(1, min(limit, MAX_PAGE))
    indexed, others = _conditions(wanted)
    if before is not None:
        indexed.append(job.c.id < before)
    last = await _last_searched(connection, indexed) if others else None
    if last is not None:
        others.append(job.c.id >= last)
    statement = select(*_COLUMNS).where(*indexed, *others).order_by(job.c.id.desc()).limit(limit + 1)
    jobs = [_job(row) for row in (await connection.execute(statement)).mappings()]
    if len(jobs) > limit:
        return Page(jobs[:limit], jobs[limit - 1].id)
    return Page(jobs, last, searched=last is not None)


async def _last_searched(
    connection: AsyncSession | AsyncConnection, indexed: Sequence[ColumnElement[bool]]
) -> UUID | None:
    """The last job that a page looks at; None if it can look at all of them."""
    statement = select(job.c.id).where(*indexed).order_by(job.c.id.desc()).offset(SEARCHED).limit(1)
    last: UUID | None = (await connection.execute(statement)).scalar()
    return last


async def ids(
    connection: AsyncSession | AsyncConnection, wanted: JobFilter, *, limit: int, after: UUID | None = None
) -> list[UUID]:
    """The ids of the jobs that the filter finds, the oldest first.

    :param after: only of those that were enqueued after this one.
    """
    indexed, others = _conditions(wanted)
    if after is not None:
        indexed.append(job.c.id > after)
    statement = select(job.c.id).where(*indexed, *others).order_by(job.c.id).limit(limit)
    return list((await connection.execute(statement)).scalars())


def _job(row: Mapping[Any, Any]) -> Job:
    values = {field: row[field] for field in Job.__dataclass_fields__}
    values |= {name: payload.read(values[name]) for name in _JSON}
    values["state"] = State(values["state"])
    values["errors"] = values["errors"] or []
    values["tags"] = values["tags"] or []
    return Job(**values)


def _conditions(wanted: JobFilter) -> tuple[list[ColumnElement[bool]], list[ColumnElement[bool]]]:
    """What an index serves, and what must be looked at job by job.

    Of several that an index would serve only the first counts as such: one index is all that a plan can walk in the
    order of ids.
    """
    served, others = _by_name(wanted), _by_contents(wanted)
    if wanted.states:  # most have succeeded: no index tells these apart
        (others if State.SUCCEEDED in wanted.states else served).append(_in_state(wanted.states))
    if wanted.tasks:
        others.append(job.c.task.in_(_storable(wanted.tasks)))
    times = []
    if wanted.created_after is not None:
        times.append(job.c.id >= _first_id(wanted.created_after))
    if wanted.created_before is not None:
        times.append(job.c.id < _first_id(wanted.created_before))
    return [*served[:1], *times], [*served[1:], *others]


def _by_name(wanted: JobFilter) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if wanted.batch is not None:
        conditions.append(job.c.batch_id == wanted.batch)
    for name, value in ((job.c.key, wanted.key), (job.c.group_key, wanted.group), (job.c.tenant, wanted.tenant)):
        if value is not None:
            conditions.append(name == value if payload.is_storable(value) else false())
    return conditions


def _by_contents(wanted: JobFilter) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if wanted.queues:
        conditions.append(job.c.queue.in_(_storable(wanted.queues)))
    if wanted.tags:
        conditions.append(or_(false(), *(job.c.tags.contains([tag]) for tag in _storable(wanted.tags))))
    if wanted.arguments:
        conditions.append(job.c.payload.contains(dict(wanted.arguments)))
    return conditions


def _in_state(states: Sequence[State]) -> ColumnElement[bool]:
    # Literals, so that the planner leaves out the tables that cannot have them; what runs is found by its lease.
    said: ColumnElement[bool] = literal_column("state in (" + ", ".join(f"'{State(each)}'" for each in states) + ")")
    return and_(said, job.c.lease_until.is_not(None)) if set(states) == {State.RUNNING} else said


def _first_id(moment: datetime) -> UUID:
    """The lowest id that a job enqueued at that moment can have."""
    milliseconds = int(moment.timestamp() * 1000)
    return UUID(int=min(max(milliseconds, 0), 2**48 - 1) << 80)


def _storable(names: Sequence[str]) -> list[str]:
    """Those that a row can hold at all; Postgres fails on the others where it should find nothing."""
    return [name for name in names if payload.is_storable(name)]
