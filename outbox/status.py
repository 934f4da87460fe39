"""Answer questions about jobs: one, or a page of them. Reads only, through the view ``outbox.job``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Select, Text, cast, false, or_, select, text
from sqlalchemy.dialects.postgresql import JSONB
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


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """Which jobs; each field that is not empty narrows, and within a field any value will do.

    :param created_after: from this aware datetime on.
    :param created_before: before this aware datetime.
    """

    states: Sequence[State] = ()
    queues: Sequence[str] = ()
    tasks: Sequence[str] = ()
    tags: Sequence[str] = ()
    created_after: datetime | None = None
    created_before: datetime | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Jobs, newest first, and where the next page starts: pass ``next`` as ``before``; None at the end."""

    jobs: list[Job]
    next: UUID | None


async def get(connection: AsyncSession | AsyncConnection, id: UUID) -> Job | None:
    """The job, or None if there is none (any more)."""
    row = (await connection.execute(select(*_COLUMNS).where(job.c.id == id))).mappings().first()
    return None if row is None else _job(row)


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

    :param limit: 1 to 200.
    :param before: the ``next`` of the page before this one.
    """
    limit = max(1, min(limit, MAX_PAGE))
    statement = select(*_COLUMNS).where(*_conditions(wanted)).order_by(job.c.id.desc()).limit(limit + 1)
    jobs = [_job(row) for row in (await connection.execute(_before(statement, before))).mappings()]
    return Page(jobs[:limit], jobs[limit - 1].id if len(jobs) > limit else None)


async def ids(connection: AsyncSession | AsyncConnection, wanted: JobFilter, *, limit: int) -> list[UUID]:
    """The ids of the jobs that the filter finds, the oldest first."""
    statement = select(job.c.id).where(*_conditions(wanted)).order_by(job.c.id).limit(limit)
    return list((await connection.execute(statement)).scalars())


def _job(row: Mapping[Any, Any]) -> Job:
    values = {field: row[field] for field in Job.__dataclass_fields__}
    values |= {name: payload.read(values[name]) for name in _JSON}
    values["state"] = State(values["state"])
    values["errors"] = values["errors"] or []
    values["tags"] = values["tags"] or []
    return Job(**values)


def _before(statement: Select[Any], id: UUID | None) -> Select[Any]:
    return statement if id is None else statement.where(job.c.id < id)


def _conditions(wanted: JobFilter) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if wanted.states:
        conditions.append(job.c.state.in_([state.value for state in wanted.states]))
    if wanted.queues:
        conditions.append(job.c.queue.in_(_storable(wanted.queues)))
    if wanted.tasks:
        conditions.append(job.c.task.in_(_storable(wanted.tasks)))
    if wanted.tags:
        conditions.append(or_(false(), *(job.c.tags.contains([tag]) for tag in _storable(wanted.tags))))
    if wanted.created_after is not None:
        conditions.append(job.c.created_at >= wanted.created_after)
    if wanted.created_before is not None:
        conditions.append(job.c.created_at < wanted.created_before)
    return conditions


def _storable(names: Sequence[str]) -> list[str]:
    """Those that a row can hold at all; Postgres fails on the others where it should find nothing."""
    return [name for name in names if payload.is_storable(name)]
