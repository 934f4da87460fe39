"""Put jobs into the caller's unit of work, and into no other: nothing here opens, commits or rolls back.

A new job is an object that the session tracks like any other that was added: SQLAlchemy itself drops it when the
transaction, or the savepoint it was added in, is rolled back before the flush. At the flush, all new jobs are written
in one statement, on the session's own connection, before the business rows of the same flush.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

from sqlalchemy import Connection, event, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session, SessionTransaction, registry

from outbox import sql, wakeup
from outbox.backoff import MAX_ATTEMPTS, seconds
from outbox.errors import EnqueueFailed
from outbox.table import live_job

if sys.version_info >= (3, 14):
    from uuid import uuid7
else:
    from uuid_utils.compat import uuid7

MAX_NAME = 200
PRIORITIES = (3, 2, 1, 0)
"""Highest first: the order in which a claim looks."""

_ENQUEUE = text(sql.ENQUEUE)
_FAILED = "outbox.enqueue_failed"
_QUEUES = "outbox.queues"


def is_name(text: str) -> bool:
    """Whether a task, a queue or a tag may be called so: no NUL, no surrogate, nothing that spoils a log."""
    return 1 <= len(text) <= MAX_NAME and text.isprintable()


class UnitOfWork(Protocol):
    """Whatever takes new objects into a transaction: ``Session``, ``AsyncSession``, their scoped and SQLModel kinds."""

    def add(self, instance: object, /) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How one job is run, where that differs from what its task says.

    :param queue: another queue than the task's.
    :param priority: 3 is claimed first, 0 last.
    :param delay: seconds or a timedelta from now, by the database's clock. Not together with ``run_at``.
    :param run_at: an aware datetime before which the job does not run.
    :param max_attempts: 1 to 32,767.
    :param tags: strings to find the job by.
    """

    queue: str = "default"
    priority: int = 1
    delay: float | timedelta = 0.0
    run_at: datetime | None = None
    max_attempts: int | None = None
    tags: Sequence[str] = field(default=())

    def __post_init__(self) -> None:
        if not is_name(self.queue):
            raise ValueError(f"queue: must be 1 to {MAX_NAME} printable characters")
        if self.priority not in PRIORITIES:
            raise ValueError(f"priority: {self.priority!r}; must be 0 to 3, 3 is claimed first")
        if self.max_attempts is not None and not 1 <= self.max_attempts <= MAX_ATTEMPTS:
            raise ValueError(f"max_attempts: {self.max_attempts}; must be 1 to {MAX_ATTEMPTS}")
        if self.run_at is not None and self.run_at.tzinfo is None:
            raise TypeError(f"run_at: {self.run_at} has no time zone; pass an aware datetime")
        if self.run_at is not None and self.delay:
            raise ValueError("give delay or run_at, not both")
        if isinstance(self.tags, str) or not all(map(is_name, self.tags)):
            raise ValueError(f"tags: must be a sequence of strings of 1 to {MAX_NAME} printable characters")
        seconds(self.delay)


class NewJob:
    """A job to be written with the caller's transaction. Its ``id`` is known now; its row exists after the flush."""

    id: UUID
    task: str
    queue: str

    def __init__(self, task: str, payload: str, options: Options) -> None:
        self.id = uuid7()
        self.task = task
        self.queue = options.queue
        self.payload = payload
        self.options = options

    def __repr__(self) -> str:
        return f"<NewJob {self.task} {self.id} queue={self.queue}>"


# Only the id is mapped: enough for a session to track the object, and no more work per attribute than that.
registry().map_imperatively(NewJob, live_job, include_properties=["id"])


def add(session: UnitOfWork, job: NewJob) -> NewJob:
    """Make the job part of the session's transaction. No I/O: it is written at the next flush."""
    session.add(job)
    return job


async def add_many(connection: AsyncSession | AsyncConnection, jobs: Iterable[NewJob]) -> list[NewJob]:
    """Write many jobs at once in the caller's transaction, without the bookkeeping of a session: for thousands.

    :raises EnqueueFailed: if the connection is in autocommit.
    """
    batch = list(jobs)
    if isinstance(connection, AsyncSession):
        await connection.run_sync(_write_in_session, batch)
    elif batch:
        await connection.run_sync(_write, batch)
    return batch


def refuse_autocommit(connection: Connection) -> None:
    """Refuse a connection that has no transactions.

    :raises EnqueueFailed: if it is in autocommit.
    """
    raw = connection.connection.dbapi_connection
    if raw is not None and connection.dialect.detect_autocommit_setting(raw):
        raise EnqueueFailed("this connection is in autocommit: its jobs would not be part of any transaction of yours")


def _write(connection: Connection, jobs: list[NewJob]) -> None:
    refuse_autocommit(connection)
    connection.execute(_ENQUEUE, _columns(jobs))


def _write_in_session(session: Session, jobs: list[NewJob]) -> None:
    if not jobs:
        return
    try:
        # The mapper lets a session that is bound per class find the database of the outbox.
        _write(session.connection(bind_arguments={"mapper": NewJob}), jobs)
    except (SQLAlchemyError, EnqueueFailed) as exc:
        session.info[_FAILED] = (exc, session.get_nested_transaction() or session.get_transaction())
        raise
    session.info.setdefault(_QUEUES, set()).update(job.queue for job in jobs)


def _columns(jobs: Sequence[NewJob]) -> dict[str, list[Any]]:
    return {
        "id": [str(job.id) for job in jobs],
        "task": [job.task for job in jobs],
        "queue": [job.queue for job in jobs],
        "payload": [job.payload for job in jobs],
        "priority": [job.options.priority for job in jobs],
        "run_at": [job.options.run_at for job in jobs],
        "delay": [seconds(job.options.delay) for job in jobs],
        "max_attempts": [job.options.max_attempts for job in jobs],
        "tags": [_tags(job.options.tags) for job in jobs],
    }


def _tags(tags: Sequence[str]) -> str | None:
    return json.dumps(list(tags)) if tags else None


@event.listens_for(Session, "before_flush")
def _write_new_jobs(session: Session, _context: object, _instances: object) -> None:
    jobs = [each for each in session.new if isinstance(each, NewJob)]
    if jobs:
        for job in jobs:
            session.expunge(job)
        _write_in_session(session, jobs)


@event.listens_for(Session, "before_commit")
def _refuse_after_failure(session: Session) -> None:
    # Postgres answers COMMIT of a failed transaction with a silent ROLLBACK. A caller who caught the exception of the
    # flush would take that for success.
    if _FAILED in session.info:
        exc, _ = session.info[_FAILED]
        raise EnqueueFailed("jobs of this transaction could not be written: roll it back") from exc


@event.listens_for(Session, "after_soft_rollback")
def _forget_failure(session: Session, rolled_back: SessionTransaction) -> None:
    # Only the rollback of the transaction that failed, or of one around it, mends the failure.
    _, failed = session.info.get(_FAILED, (None, None))
    while failed is not None:
        if failed is rolled_back:
            del session.info[_FAILED]
            break
        failed = failed.parent
    if not session.in_transaction():
        session.info.pop(_QUEUES, None)


@event.listens_for(Session, "after_commit")
def _wake_workers(session: Session) -> None:
    if not session.in_nested_transaction() and (queues := session.info.pop(_QUEUES, None)):
        wakeup.hint(session.get_bind(mapper=NewJob), queues)
