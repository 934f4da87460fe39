"""Jobs that come after others, and batches: written together with the jobs, in the caller's transaction.

What then happens when jobs end is done by the database, in the transaction in which they do: see ``schema.flow``.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from outbox import sql
from outbox.errors import EnqueueFailed
from outbox.newjob import NewJob

_COUNT_IN = text(sql.COUNT_IN)
_FOLLOW = text(sql.FOLLOW)
_DEPEND = text(sql.DEPEND)


def write(connection: Connection, jobs: Sequence[NewJob]) -> None:
    """Write what is around these jobs; they themselves are written next, or have been just now.

    :raises EnqueueFailed: if one of them is to come after a job of another transaction, or joins a batch that is over.
    """
    batched = [job for job in jobs if job.batch is not None]
    if batched:
        _count_in(connection, batched)
    following = [job for job in jobs if job.options.after]
    if following:
        _follow(connection, following, {job.id for job in jobs})
    transaction = connection.get_transaction()
    for job in jobs:
        job.written_in = transaction


def _count_in(connection: Connection, jobs: Iterable[NewJob]) -> None:
    batches = {job.batch.id: job.batch for job in jobs if job.batch is not None}
    totals = Counter(job.batch.id for job in jobs if job.batch is not None)
    values = {
        "id": [str(id) for id in batches],
        "name": [batch.name for batch in batches.values()],
        "tenant": [batch.tenant for batch in batches.values()],
        "callbacks": [batch.callbacks for batch in batches.values()],
        "total": [totals[id] for id in batches],
    }
    if len(connection.execute(_COUNT_IN, values).all()) < len(batches):
        raise EnqueueFailed("a batch whose jobs have all ended takes no more of them")


def _follow(connection: Connection, jobs: Sequence[NewJob], here: set[UUID]) -> None:
    pairs = [(job, n, each) for job in jobs for n, each in enumerate(dict.fromkeys(job.options.after))]
    earlier = {each.id for _, _, each in pairs if each.id not in here}
    if any(each.id in earlier and each.written_in is not connection.get_transaction() for _, _, each in pairs):
        raise EnqueueFailed(_STRANGER)
    if earlier and len(connection.execute(_FOLLOW, {"id": [str(id) for id in earlier]}).all()) < len(earlier):
        raise EnqueueFailed(_STRANGER)
    values: dict[str, list[Any]] = {
        "job": [str(job.id) for job, _, _ in pairs],
        "after": [str(each.id) for _, _, each in pairs],
        "position": [n for _, n, _ in pairs],
        "anyway": [job.options.even_if_failed for job, _, _ in pairs],
    }
    connection.execute(_DEPEND, values)


_STRANGER = "after: a job can only come after others that are enqueued in the same transaction, before it or with it"
