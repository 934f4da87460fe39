"""A job in any state by one line, planted in the database behind the library's back.

id = await plant(engine, "failed", task="send_receipt")
await plant_many(engine, 100_000)
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, func, insert, literal, select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from outbox import status
from outbox.context import Claim
from outbox.job import MAX_LOST, Job
from outbox.marks import FIRST, Marks
from outbox.newjob import PRIORITIES, NewJob, Options
from outbox.table import finished_job, live_job
from outbox.table import job as job_view

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)

WORKER = UUID("00000000-0000-4000-8000-000000000001")
"""The worker that planted jobs ran on."""


def ago(seconds: float) -> ColumnElement[Any]:
    """A moment by the database's clock; a negative number lies in the future."""
    return func.clock_timestamp() - literal(timedelta(seconds=seconds))


_RAN: Mapping[str, Any] = MappingProxyType({"fence": 1, "worker_id": WORKER, "started_at": ago(5)})
_RUNS: Mapping[str, Any] = MappingProxyType({**_RAN, "state": "running", "lease_until": ago(-3600)})

KINDS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "pending": {},
        "scheduled": {"run_at": ago(-3600)},
        "retrying": {"run_at": ago(-60), **_RAN, "attempt": 1},
        "running": _RUNS,
        "expired": {**_RUNS, "lease_until": ago(1)},
        "cancelling": {**_RUNS, "cancel_requested_at": ago(1)},
        "succeeded": {**_RAN, "state": "succeeded", "attempt": 1, "result": {"ok": True}},
        "failed": {**_RAN, "state": "failed", "attempt": 1},
        "cancelled": {**_RAN, "state": "cancelled", "attempt": 1, "cancel_requested_at": ago(1)},
    }
)
"""Every state, and the situations within one that people tell apart."""


def new_id() -> UUID:
    """An id as a job gets it: later ones are greater."""
    return NewJob("noop", "{}", Options()).id


async def plant(engine: AsyncEngine, kind: str = "pending", **columns: Any) -> UUID:
    """A committed job of this kind; any column may be given another value, or an SQL expression."""
    values = {"id": new_id(), "task": "noop", **KINDS[kind], **columns}
    table = live_job if values.get("state", "pending") in ("pending", "running") else finished_job
    async with engine.begin() as connection:
        await connection.execute(insert(table).values(values))
    return UUID(str(values["id"]))


_FILL = text(
    """
    insert into outbox.live_job (task, queue, priority, payload, run_at, state, lease_until, fence)
    select :task, :queue, :priority, jsonb_build_object('n', n), clock_timestamp() - make_interval(secs => :ago),
           cast(:state as text), case when :state = 'running' then clock_timestamp() + interval '1 hour' end,
           case when :state = 'running' then 1 else 0 end
    from generate_series(1, :count) n
    """
)


async def plant_many(engine: AsyncEngine, count: int, **values: Any) -> None:
    """Many jobs with arguments ``n`` = 1, 2, …, due now; ``task queue priority state ago`` (seconds) can be set."""
    defaults = {"task": "noop", "queue": "default", "priority": 1, "state": "pending", "ago": 0.0}
    async with engine.begin() as connection:
        await connection.execute(_FILL, {**defaults, **values, "count": count})


async def read(engine: AsyncEngine, id: UUID) -> Job:
    """The job as it is now; it must be there."""
    async with engine.connect() as connection:
        job = await status.get(connection, id)
    assert job is not None, f"no job {id}"
    return job


async def read_all(engine: AsyncEngine) -> list[Job]:
    """Every job, live and finished, oldest first."""
    jobs: list[Job] = []
    async with engine.connect() as connection:
        before: UUID | None = None
        while True:
            page = await status.page(connection, status.JobFilter(), limit=status.MAX_PAGE, before=before)
            jobs += page.jobs
            if (before := page.next) is None:
                break
    return jobs[::-1]


async def count(engine: AsyncEngine, *states: str) -> int:
    """How many jobs there are, in these states or in any."""
    statement = select(func.count()).select_from(job_view)
    if states:
        statement = statement.where(job_view.c.state.in_(states))
    async with engine.connect() as connection:
        return int((await connection.execute(statement)).scalar_one())


def held(id: UUID, *, fence: int = 1, **fields: Any) -> Claim:
    """The claim that the worker of a planted job holds on it."""
    given = {
        "task": "noop",
        "queue": "default",
        "priority": 1,
        "run_at": EPOCH,
        "payload": "{}",
        "attempt": 1,
        "max_attempts": 8,
        "created_at": EPOCH,
        "worker_id": WORKER,
    }
    return Claim(id=id, fence=fence, **{**given, **fields})


def claim_arguments(wanted: Mapping[str, int]) -> tuple[Any, ...]:
    """What a worker that knows ``noop`` gives ``sql.CLAIM`` at its first claim."""
    begin = Marks().begin(wanted, PRIORITIES)
    marks = [[moment for moment, _ in each] for each in begin], [[id for _, id in each] for each in begin]
    known = '{"noop": 1}'
    return [*wanted], [*wanted.values()], [*PRIORITIES], known, WORKER, 30.0, MAX_LOST - 1, True, *marks, FIRST[0]


def execute_on(connection: Connection) -> Any:
    """What ``outbox.schema.upgrade`` wants, on a SQLAlchemy connection."""
    return lambda statement: connection.execute(text(statement))
