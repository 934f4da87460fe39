"""Put jobs into the caller's unit of work, and into no other: nothing here opens, commits or rolls back.

A new job is an object that the session tracks like any other that was added: SQLAlchemy itself drops it when the
transaction, or the savepoint it was added in, is rolled back before the flush. At the flush, all new jobs are written
in one statement (those with a key apart, see ``unique``), on the session's own connection, before the business rows of
the same flush.
"""

from collections.abc import Iterable
from typing import Any, Protocol

from sqlalchemy import Connection, event, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session, SessionTransaction, registry

from outbox import flow, sql, statement, unique, wakeup
from outbox.errors import EnqueueFailed, JobExists, QueueFull
from outbox.newjob import NewJob, columns
from outbox.table import live_job

_ENQUEUE = text(sql.ENQUEUE)
_ENQUEUE_ONE = text(sql.ENQUEUE_ONE)
_COMMON = {"id", "task", "queue", "payload", "priority", "max_attempts"}
_FAILED = "outbox.enqueue_failed"
_QUEUES = "outbox.queues"

QUEUE_FULL = "OB503"
"""SQLSTATE of ``outbox.has_room``."""


class UnitOfWork(Protocol):
    """Whatever takes new objects into a transaction: ``Session``, ``AsyncSession``, their scoped and SQLModel kinds."""

    def add(self, instance: object, /) -> None: ...


# Only the id is mapped: enough for a session to track the object, and no more work per attribute than that.
registry().map_imperatively(NewJob, live_job, include_properties=["id"])


def add(session: UnitOfWork, job: NewJob) -> NewJob:
    """Make the job part of the session's transaction. No I/O: it is written at the next flush."""
    session.add(job)
    return job


async def add_many(connection: AsyncSession | AsyncConnection, jobs: Iterable[NewJob]) -> list[NewJob]:
    """Write many jobs at once in the caller's transaction, without the bookkeeping of a session: for thousands.

    :raises EnqueueFailed: if the connection is in autocommit.
    :raises JobExists: if a key is taken and its job said to reject it; all others have been written.
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
    try:
        _insert(connection, jobs)
    except DBAPIError as exc:
        if _state(exc) == QUEUE_FULL:
            raise QueueFull(_detail(exc) or "") from exc
        raise


def _insert(connection: Connection, jobs: list[NewJob]) -> None:
    refuse_autocommit(connection)
    flow.write(connection, jobs)
    keyed = [job for job in jobs if job.options.key is not None]
    rejected = unique.write(connection, keyed) if keyed else []
    plain = [job for job in jobs if job.options.key is None] if keyed else jobs
    if plain:
        _insert_plain(connection, columns(plain))
    for job in plain:
        job.is_new = True
    if rejected:
        raise JobExists(rejected)


def _insert_plain(connection: Connection, values: dict[str, list[Any]]) -> None:
    said = {name: column[0] for name, column in values.items() if column}
    if len(values["id"]) == 1 and said.keys() - {"headers"} == _COMMON:
        statement.execute(connection, _ENQUEUE_ONE, {"headers": None} | said)
    else:
        statement.execute(connection, _ENQUEUE, values)


def _state(exc: DBAPIError) -> str | None:
    """The SQLSTATE, by whatever name the driver has for it."""
    return getattr(exc.orig, "sqlstate", None) or getattr(exc.orig, "pgcode", None)


def _detail(exc: DBAPIError) -> str | None:
    for each in (exc.orig, getattr(exc.orig, "__cause__", None), getattr(exc.orig, "diag", None)):
        detail = getattr(each, "detail", None) or getattr(each, "message_detail", None)
        if detail:
            return str(detail)
    return None


def _write_in_session(session: Session, jobs: list[NewJob]) -> None:
    if not jobs:
        return
    try:
        # The mapper lets a session that is bound per class find the database of the outbox.
        _write(session.connection(bind_arguments={"mapper": NewJob}), jobs)
    except JobExists:
        raise  # all others have been written: the transaction is as good as before
    except (SQLAlchemyError, EnqueueFailed) as exc:
        session.info[_FAILED] = (exc, session.get_nested_transaction() or session.get_transaction())
        raise
    session.info.setdefault(_QUEUES, set()).update(job.queue for job in jobs)


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
