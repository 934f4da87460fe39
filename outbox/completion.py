"""Transactional completion: a handler's business writes, the jobs it enqueues and its own settled state, in one commit.

A handler that asks for an ``AsyncSession`` gets one of ``Outbox(sessions=...)``. When it returns, its result is made
JSON, its job is settled on the session's own connection, guarded by the fence, and the session is committed. So the
effects in the database happen exactly once: whatever dies, all of it is there or nothing is. Whatever else ends the
handler (an exception, a timeout, a cancel, a ``Snooze``) rolls the session back, and the job is settled apart from it.

If the connection is lost during the commit nobody knows how it ended. The attempt then counts as failed, and the fence
knows better: that failure is only recorded if the commit did not happen.
"""

import asyncio
from typing import Any

from sqlalchemy import event, text
from sqlalchemy.orm import Session

from outbox import sql, statement
from outbox.context import Claim
from outbox.enqueue import refuse_autocommit
from outbox.errors import CommitRefused, LeaseLost
from outbox.job import State
from outbox.outcome import Cancel, Finished, Snooze
from outbox.task import Task

_FINISH_HERE = text(sql.FINISH_HERE)
_HANDED_OUT = "outbox.handed_out"


async def run(task: Task[..., Any], claim: Claim, /, **arguments: Any) -> Any:
    """Call the handler with a session, and commit it together with the job's state.

    :return: the outcome, written; or the ``Snooze`` or ``Cancel`` that the handler returned, with nothing written.
    :raises LeaseLost: if the job is somebody else's by now.
    """
    assert task.sessions is not None
    assert task.session is not None
    session = task.sessions()
    try:
        session.info[_HANDED_OUT] = True
        arguments[task.session] = session
        value = await task.handler(**arguments)
        if isinstance(value, Snooze | Cancel):
            return value
        outcome = Finished(State.SUCCEEDED, *task.encode_result(value, claim.id), written=True)
        claim.settling = True
        await session.run_sync(_commit, claim, outcome)
        return outcome
    finally:
        if session.in_transaction():
            await asyncio.shield(session.close())  # rolls back


def _commit(session: Session, claim: Claim, outcome: Finished) -> None:
    """Settle and commit: in one go, since each step from asyncio into SQLAlchemy costs as much as a small query."""
    session.flush()  # first, so that what the handler wrote is locked for as short a time as can be
    connection = session.connection()
    refuse_autocommit(connection)
    values = {
        "id": claim.id,
        "fence": claim.fence,
        "result": outcome.result,
        "error": outcome.error and outcome.error.as_json(),
        "progress": claim.progress,
        "checkpoint": claim.kept,
    }
    if not statement.execute(connection, _FINISH_HERE, values).scalar():
        raise LeaseLost("the job was no longer this worker's when its handler ended; nothing was committed")
    del session.info[_HANDED_OUT]
    session.commit()
    session.close()


@event.listens_for(Session, "before_commit")
def _refuse_commit(session: Session) -> None:
    if session.info.get(_HANDED_OUT) and not session.in_nested_transaction():
        raise CommitRefused(
            "this session is committed by the worker, together with the job's state: remove commit(), or use flush(); "
            "for a transaction of your own open another session"
        )
