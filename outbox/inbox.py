"""The mirror of the outbox: what comes from outside is accepted once, in the transaction that does its work.

A sender that gets no answer sends again; a queue delivers at least once. ``accept`` says whether a message is new, and
its answer holds exactly if the transaction commits: what is done for a new message and the note that it was done are
one. The same table keeps the answers to requests with an ``Idempotency-Key`` (see ``outbox.fastapi``).
"""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from outbox import payload

MAX_SOURCE = 1000
MAX_ID = 300

_ACCEPT = text(
    """
    insert into outbox.inbox (source, message_id) values (:source, :message_id)
    on conflict do nothing returning true
    """
)


async def accept(connection: AsyncSession | AsyncConnection, source: str, message_id: str) -> bool:
    """Whether this message is new. It is then taken as done if, and only if, the caller's transaction commits.

    While another transaction has accepted it and is still open, this one waits: if that commits the message is not new,
    if it is rolled back it is. Nothing here spoils the transaction. A message is known for as long as finished jobs are
    kept (``WorkerSettings.retention_days``), which must be longer than its sender keeps trying.

    :param source: who sends messages of such ids; 1 to 1,000 characters.
    :param message_id: as the sender gives it; 1 to 300 characters.
    :raises ValueError: if one of them is empty, too long, or cannot be stored.
    """
    for name, value, longest in (("source", source, MAX_SOURCE), ("message_id", message_id, MAX_ID)):
        if not 1 <= len(value) <= longest or not payload.is_storable(value):
            raise ValueError(f"{name}: must be 1 to {longest:,} characters, and no NUL among them")
    return (await connection.execute(_ACCEPT, {"source": source, "message_id": message_id})).scalar() is not None
