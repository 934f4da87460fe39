"""What a person may do to a job, in the caller's transaction; a move that the job's state does not allow is refused."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from outbox import sql, status
from outbox.errors import IllegalTransition, JobNotFound, KeyTaken
from outbox.job import TERMINAL, TRANSITIONS, Job, State
from outbox.newjob import PRIORITIES
from outbox.status import JobFilter

Action = Literal["cancel", "retry", "discard", "run", "priority"]

ACTIONS: Mapping[Action, frozenset[State]] = {
    "cancel": frozenset(TRANSITIONS["cancel"]),
    "retry": frozenset(TRANSITIONS["requeue"]),
    "discard": TERMINAL,
    "run": frozenset({State.PENDING}),
    "priority": frozenset({State.PENDING}),
}
"""What a person may do to many jobs at once, and in which states they must be for it."""

_STATEMENTS: Mapping[Action, str] = {
    "retry": sql.REQUEUE,
    "discard": sql.DISCARD,
    "run": sql.RUN_NOW,
    "priority": sql.SET_PRIORITY,
}

MANY = 10_000
"""Jobs at most that one call changes."""


async def cancel(connection: AsyncSession | AsyncConnection, id: UUID, *, tenant: str | None = None) -> Job:
    """Cancel the job: at once if it waits; if it runs, its worker is asked to stop it (see ``cancel_requested_at``).

    :param tenant: whose jobs alone are seen, here and below; those of everybody unless given.
    :return: the job as it is now, which says what happened.
    :raises JobNotFound: if there is no such job.
    :raises IllegalTransition: if it has ended already.
    """
    if tenant is not None:
        await _current(connection, id, tenant)
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


async def requeue(connection: AsyncSession | AsyncConnection, id: UUID, *, tenant: str | None = None) -> Job:
    """Run a failed or cancelled job again, now, with all its attempts before it; its errors stay in its history.

    :raises JobNotFound: if there is no such job.
    :raises IllegalTransition: if it waits, runs, or has succeeded.
    :raises KeyTaken: if a live job of the task has its key by now.
    """
    if tenant is not None:
        await _current(connection, id, tenant)
    state = await _locked_state(connection, id, sql.LOCK_FINISHED)
    if state not in TRANSITIONS["requeue"]:
        await _refuse(connection, id, "requeue")
    if (await connection.execute(text(sql.REQUEUE), {"ids": [str(id)]})).scalar() is None:
        raise KeyTaken(id, await _owner_of_its_key(connection, id))
    return await _current(connection, id)


async def run_now(connection: AsyncSession | AsyncConnection, id: UUID, *, tenant: str | None = None) -> Job:
    """Have a job that waits for its time run as soon as it can.

    :raises JobNotFound: if there is no such job.
    :raises IllegalTransition: if it does not wait.
    """
    await _waiting(connection, id, "run now", tenant)
    await connection.execute(text(sql.RUN_NOW), {"ids": [str(id)]})
    return await _current(connection, id)


async def set_priority(
    connection: AsyncSession | AsyncConnection, id: UUID, priority: int, *, tenant: str | None = None
) -> Job:
    """Give a job that waits another priority. It then is the last of those with that priority that are due.

    :raises ValueError: if there is no such priority.
    :raises JobNotFound: if there is no such job.
    :raises IllegalTransition: if it does not wait.
    """
    _check_priority(priority)
    await _waiting(connection, id, "change the priority", tenant)
    await connection.execute(text(sql.SET_PRIORITY), {"ids": [str(id)], "priority": priority})
    return await _current(connection, id)


async def discard(connection: AsyncSession | AsyncConnection, id: UUID, *, tenant: str | None = None) -> None:
    """Delete a job that has ended, with its result and its errors.

    :raises JobNotFound: if there is no such job.
    :raises IllegalTransition: if it waits or runs: cancel it first.
    """
    job = await _current(connection, id, tenant)
    if job.state not in TERMINAL:
        raise IllegalTransition(id, "discard", job.state, sorted(TERMINAL))
    await connection.execute(text(sql.DISCARD), {"ids": [str(id)]})


async def requeue_many(
    connection: AsyncSession | AsyncConnection, wanted: JobFilter, *, limit: int = 1000, dry_run: bool = False
) -> int:
    """Requeue the failed and cancelled jobs that the filter finds, the oldest first: ``change_many`` in a word."""
    return (await change_many(connection, "retry", wanted, limit=limit, dry_run=dry_run)).changed


@dataclass(frozen=True, slots=True)
class Change:
    """What became of many jobs.

    :ivar matched: how many were found in a state from which the move is legal, ``limit`` at most.
    :ivar changed: how many were moved, or would be; the others had changed meanwhile, their key is taken, or they were
        as they should be.
    :ivar next: where the next portion starts: pass it as ``after``; None if a filter finds no more.
    """

    matched: int
    changed: int
    next: UUID | None = None


async def change_many(
    connection: AsyncSession | AsyncConnection,
    action: Action,
    wanted: JobFilter | Sequence[UUID],
    *,
    limit: int = 1000,
    after: UUID | None = None,
    dry_run: bool = False,
    priority: int | None = None,
    tenant: str | None = None,
) -> Change:
    """Do to many jobs what the functions above do to one; those for which it is not legal are left as they are.

    For more than ``limit`` call it again, in a transaction of its own each time, with ``after`` from the answer before,
    until that is None: so the workers get them in portions, and nobody waits for a long one. What is found but stays as
    it is, a running job that was asked to stop, say, is passed by and not found again.

    :param wanted: a filter, whose oldest jobs come first, or ids.
    :param limit: how many at most; 1 to 10,000.
    :param after: the ``next`` of the portion before this one.
    :param dry_run: whether to count only.
    :param priority: the new one, where the action is to change it.
    :param tenant: whose jobs alone are changed.
    :raises ValueError: if the action needs a priority and has none.
    """
    legal = ACTIONS[action]
    limit = max(1, min(limit, MANY))
    if isinstance(wanted, JobFilter):
        states = [state for state in (wanted.states or legal) if state in legal]
        narrowed = replace(wanted, states=states, tenant=tenant or wanted.tenant)
        ids = await status.ids(connection, narrowed, limit=limit, after=after) if states else []
        following = ids[-1] if len(ids) == limit else None
    else:
        following = None
        jobs = await status.several(connection, wanted[:limit])
        ids = [job.id for job in jobs if job.state in legal and tenant in (None, job.tenant)]
    if dry_run or not ids:
        return Change(len(ids), len(ids), following)
    return Change(len(ids), await _change(connection, action, ids, priority), following)


async def _change(
    connection: AsyncSession | AsyncConnection, action: Action, ids: Sequence[UUID], priority: int | None
) -> int:
    values: dict[str, Any] = {"ids": [str(id) for id in ids]}
    if action == "cancel":
        count: int = (await connection.execute(text(sql.CANCEL_MANY), values)).scalar_one()
        return count
    if action == "priority":
        _check_priority(priority)
        values["priority"] = priority
    return len((await connection.execute(text(_STATEMENTS[action]), values)).all())


async def _waiting(connection: AsyncSession | AsyncConnection, id: UUID, verb: str, tenant: str | None) -> None:
    job = await _current(connection, id, tenant)
    state = await _locked_state(connection, id, sql.LOCK_LIVE)
    if state is not State.PENDING:
        raise IllegalTransition(id, verb, state or job.state, [State.PENDING])


def _check_priority(priority: int | None) -> None:
    if priority not in PRIORITIES:
        raise ValueError(f"priority: {priority!r}; must be 0 to 3, 3 is claimed first")


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


async def _current(connection: AsyncSession | AsyncConnection, id: UUID, tenant: str | None = None) -> Job:
    job = await status.get(connection, id, tenant=tenant)
    if job is None:
        raise JobNotFound(id)
    return job
