"""Batches: jobs that are enqueued together, and what is enqueued when the last of them has ended.

How many have ended how is counted in the transactions in which they end, so it is exact, costs a row however many jobs
there are, and the callbacks are enqueued in the same transaction as the last job's end.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from outbox import enqueue
from outbox.enqueue import UnitOfWork
from outbox.errors import BatchNotFound
from outbox.newjob import MAX_NAME, BatchRow, NewJob, is_name
from outbox.task import Call, Task


@dataclass(frozen=True, slots=True)
class BatchSummary:
    """What became of the jobs of a batch. A callback's only argument."""

    id: UUID
    name: str
    total: int
    succeeded: int
    failed: int
    cancelled: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchState:
    """A batch as it is in the database.

    :ivar finished_at: when the last of its jobs ended for the first time; None if that has not been yet.
    """

    id: UUID
    name: str
    tenant: str | None
    total: int
    succeeded: int
    failed: int
    cancelled: int
    created_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class FollowUp:
    """What is enqueued when the last job of a batch has ended.

    :ivar outcome: whether on success, on failure, or complete: in either case.
    :ivar id: which the job gets, if it comes to that.
    """

    outcome: str
    task: str
    id: UUID


Callback = Task[[BatchSummary], Any] | Call[[BatchSummary], Any]


class Batch:
    """Jobs that are enqueued together; iterating gives their handles.

    :param name: for people: 1 to 200 printable characters.
    :param jobs: made by ``task.job(...)``; at least one. They may come ``after`` one another. If all are of one
        tenant, so is the batch, and what is enqueued at its end.
    :param on_success: a task with one argument, a ``BatchSummary``; enqueued when all jobs have succeeded.
    :param on_failure: the same, when all have ended and one of them has failed or was cancelled.
    :param on_complete: the same, when all have ended, in either case.
    :raises ValueError: if the name is none, or there are no jobs.
    """

    def __init__(
        self,
        name: str,
        jobs: Iterable[NewJob],
        *,
        on_success: Callback | None = None,
        on_failure: Callback | None = None,
        on_complete: Callback | None = None,
    ) -> None:
        if not is_name(name):
            raise ValueError(f"name: must be 1 to {MAX_NAME} printable characters")
        self.jobs = list(jobs)
        if not self.jobs:
            raise ValueError("jobs: is empty; a batch of no jobs would never end")
        if any(job.options.key is not None for job in self.jobs):
            raise ValueError("jobs: a job with a key may turn out to be another one; a batch cannot count on it")
        given = {"success": on_success, "failure": on_failure, "complete": on_complete}
        calls = [_call(outcome, callback) for outcome, callback in given.items() if callback is not None]
        tenants = {job.options.tenant for job in self.jobs}
        self._row = BatchRow(name, json.dumps(calls), tenants.pop() if len(tenants) == 1 else None)
        for job in self.jobs:
            job.batch = self._row

    @property
    def id(self) -> UUID:
        """Known at once; the row is there after the flush."""
        return self._row.id

    @property
    def name(self) -> str:
        """For people."""
        return self._row.name

    def __len__(self) -> int:
        return len(self.jobs)

    def __iter__(self) -> Iterator[NewJob]:
        return iter(self.jobs)

    def enqueue(self, session: UnitOfWork) -> "Batch":
        """Write the batch and its jobs with the session's transaction, at the next flush. For thousands of jobs
        ``await outbox.enqueue_many(session, batch)`` is faster."""
        for job in self.jobs:
            enqueue.add(session, job)
        return self


_COLUMNS = "id, name, tenant, total, succeeded, failed, cancelled, created_at, finished_at"
_MINE = "(cast(:tenant as text) is null or tenant = :tenant)"
_GET = text(f"select {_COLUMNS} from outbox.batch where id = :id and {_MINE}")
_PAGE = text(
    f"select {_COLUMNS} from outbox.batch where {_MINE} and (cast(:before as uuid) is null or id < :before) "
    "order by id desc limit :limit"
)
_FOLLOW_UPS = text(
    """
    select call ->> 'outcome' as outcome, call ->> 'task' as task, (call ->> 'id')::uuid as id
    from outbox.batch, jsonb_array_elements(callbacks) as call where batch.id = :id
    """
)
_CANCEL = text("select * from outbox.cancel_batch(:id)")


async def get(connection: AsyncSession | AsyncConnection, id: UUID, *, tenant: str | None = None) -> BatchState | None:
    """The batch, or None if there is none (any more).

    :param tenant: whose batches alone are seen, here and below; those of everybody unless given.
    """
    row = (await connection.execute(_GET, {"id": id, "tenant": tenant})).mappings().first()
    return None if row is None else BatchState(**row)


async def page(
    connection: AsyncSession | AsyncConnection,
    *,
    limit: int = 50,
    before: UUID | None = None,
    tenant: str | None = None,
) -> list[BatchState]:
    """Batches, the newest first.

    :param before: the id of the last one of the page before this one.
    """
    values = {"limit": limit, "before": before, "tenant": tenant}
    return [BatchState(**row) for row in (await connection.execute(_PAGE, values)).mappings()]


async def follow_ups(connection: AsyncSession | AsyncConnection, id: UUID) -> list[FollowUp]:
    """What is enqueued when the last job of the batch has ended."""
    return [FollowUp(*row) for row in await connection.execute(_FOLLOW_UPS, {"id": id})]


async def cancel(connection: AsyncSession | AsyncConnection, id: UUID, *, tenant: str | None = None) -> BatchState:
    """Cancel its jobs: those that wait at once; the workers of those that run are asked to stop them.

    :return: the batch as it is now; what is missing to its total still runs.
    :raises BatchNotFound: if there is none.
    """
    if await get(connection, id, tenant=tenant) is None:
        raise BatchNotFound(id)
    await connection.execute(_CANCEL, {"id": id})
    state = await get(connection, id)
    assert state is not None
    return state


def _call(outcome: str, callback: Callback) -> dict[str, Any]:
    task = callback.task if isinstance(callback, Call) else callback
    nobody = BatchSummary(UUID(int=0), "", 0, 0, 0, 0)
    job = callback.job(nobody)
    if len(task.parameters) != 1:
        raise ValueError(f"on_{outcome}: task {task.name!r} must have one argument, a BatchSummary")
    options = job.options
    return {
        "outcome": outcome,
        "id": str(job.id),
        "task": job.task,
        "queue": job.queue,
        "payload": json.loads(job.payload),
        "version": job.version,
        "argument": task.parameters[0],
        "priority": options.priority,
        "max_attempts": options.max_attempts,
        "tags": list(options.tags) or None,
        "group_key": options.group,
        "limit_key": options.limit_key,
        "headers": None if job.headers is None else json.loads(job.headers),
    }
