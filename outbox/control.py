"""What a person may do to a job, in the caller's transaction; a move that the job's state does not allow is refused."""

from dataclasses import replace
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from outbox import sql, status
from outbox.errors import IllegalTransition, JobNotFound, KeyTaken
from outbox.job import TRANSITIONS, Job, State
from outbox.status import JobFilter


async def cancel(connection: AsyncSession | AsyncConnection, id: UUID) -> Job:
    """Cancel the job: at once if it waits; if it runs, its worker is asked to stop it (see ``cancel_requested_at``).

    :return: the job as it is now, which says what happened.
    :raises JobNotFound: if there is no such job.
    :raises IllegalTransition: if it has ended already.
    """
    group = (await connection.execute(text(sql.GROUP), {"id": id})).scalar()
    if group is not None:
        await connection.execute(text(sql.LOCK_GROUP), {"group": group})
    state = await _locked_state(connection, id, sql.LOCK_LIVE)
    if state is State.PENDING:
        await connection.execute(text(sql.CANCEL), {"id": id})
        if group is not None:
            await connection.execute(text(sql.OPEN_GROUP), {"group": group})
    elif state is State.RUNNING:
        await connection.execute(text(sql.REQUEST_CANCEL), {"id": id})
    else:
        await _refuse(connection, id, "cancel")
    return await _current(connection, id)


async def requeue(connection: AsyncSession | AsyncConnection, id: UUID) -> Job:
    """Run a failed or cancelled job again, now, with all its attempts before it; its errors stay in its history.

    :raises JobNotFound: if there is no such job.
    :raises IllegalTransition: if it waits, runs, or has succeeded.
    :raises KeyTaken: if a live job of the task has its key by now.
    """
    state = await _locked_state(connection, id, sql.LOCK_FINISHED)
    if state not in TRANSITIONS["requeue"]:
        await _refuse(connection, id, "requeue")
    if (await connection.execute(text(sql.REQUEUE), {"ids": [str(id)]})).scalar() is None:
        raise KeyTaken(id, await _owner_of_its_key(connection, id))
    return await _current(connection, id)


async def requeue_many(
    connection: AsyncSession | AsyncConnection, wanted: JobFilter, *, limit: int = 1000, dry_run: bool = False
) -> int:
    """Requeue the failed and cancelled jobs that the filter finds, the oldest first.

    Those whose key a live job has by now are left as they are. For more than ``limit`` call it again, in a transaction
    of its own each time, until it answers less: so the workers get them in portions, and nobody waits for a long one.

    :param wanted: its states, if it names any, are narrowed to those from which a requeue is legal.
    :param limit: how many at most; 1 to 10,000.
    :param dry_run: whether to count only.
    :return: how many were requeued, or would be.
    """
    legal = TRANSITIONS["requeue"]
    states = [state for state in (wanted.states or legal) if state in legal]
    if not states:
        return 0
    ids = await status.ids(connection, replace(wanted, states=states), limit=max(1, min(limit, 10_000)))
    if dry_run or not ids:
        return len(ids)
    return len((await connection.execute(text(sql.REQUEUE), {"ids": [str(id) for id in ids]})).all())


async def _owner_of_its_key(connection: AsyncSession | AsyncConnection, id: UUID) -> UUID | None:
    job = await _current(connection, id)
    row = (await connection.execute(text(sql.FIND_KEYS), {"task": [job.task], "key": [job.key]})).first()
    return None if row is None else row.id


async def _locked_state(connection: AsyncSession | AsyncConnection, id: UUID, lock: str) -> State | None:
    state = (await connection.execute(text(lock), {"id": id})).scalar()
    return None if state is None else State(state)


async def _refuse(connection: AsyncSession | AsyncConnection, id: UUID, verb: str) -> None:
    job = await _current(connection, id)
    raise IllegalTransition(id, verb, job.state, sorted(TRANSITIONS[verb]))


async def _current(connection: AsyncSession | AsyncConnection, id: UUID) -> Job:
    job = await status.get(connection, id)
    if job is None:
        raise JobNotFound(id)
    return job
