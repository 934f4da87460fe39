"""How queues and workers stand, in figures under a bounded number of names, for whoever asks every few seconds.

Names of queues may come from anywhere, so that only some have figures of their own: see ``Names``. What a look costs
does not grow with how many there are.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from outbox import presence, queue
from outbox.meter import MOST_QUEUES, OTHER
from outbox.queue import QueueState

# Those that somebody works on first, then those that somebody speaks of, then whatever jobs name.
_NEWCOMERS = text(
    """
    select name from (
        select 1 as turn, jsonb_object_keys(queues) as name from outbox.worker
        where seen_at > clock_timestamp() - make_interval(secs => lease) and stopping_at is null
        union all select 2, name from outbox.queue
        union all select 3, queue from outbox.backlog where at > now() - interval '3 minutes'
    ) found
    where name <> all (cast(:known as text[]))
    group by name order by min(turn), name limit :room
    """
)

# As of the last minute that was written down: to look at each of them now could take minutes.
_OTHERS = text(
    """
    select coalesce(sum(ready), 0)::bigint as ready, coalesce(sum(scheduled), 0)::bigint as scheduled,
           coalesce(sum(running), 0)::bigint as running, coalesce(max(waited), 0) as oldest,
           exists (
               select from outbox.queue where paused_at is not null and name <> all (cast(:known as text[]))
           ) as paused
    from outbox.backlog
    where at = (select max(at) from outbox.backlog where at > now() - interval '3 minutes')
      and queue <> all (cast(:known as text[]))
    """
)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueFigures:
    """How a queue stands.

    :ivar ready: jobs that are due and wait; 10,000 may be more.
    :ivar scheduled: jobs that are not due yet; 10,000 may be more.
    :ivar running: jobs that workers have claimed.
    :ivar oldest: seconds for which the one has been due that has waited longest; 0 if none waits.
    """

    ready: int
    scheduled: int
    running: int
    oldest: float
    paused: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerFigures:
    """How a worker stands that is up.

    :ivar busy: how many of its slots are taken; what it has claimed ahead takes none.
    :ivar seen_at: when it was last heard of.
    """

    slots: int
    busy: int
    seen_at: datetime


class Names:
    """The queues that have figures of their own, 200 at most. One that is in stays, so that there are never more.

    :param declared: those that are in from the start.
    """

    def __init__(self, declared: Iterable[str]) -> None:
        # One that is really called so is one of the others.
        self._known = list(islice((name for name in declared if name != OTHER), MOST_QUEUES))

    async def update(self, connection: AsyncSession | AsyncConnection) -> Sequence[str]:
        """Take in what has come since, while there is room. All of them."""
        if room := MOST_QUEUES - len(self._known):
            found = await connection.execute(_NEWCOMERS, {"known": [*self._known, OTHER], "room": room})
            self._known += found.scalars()
        return self._known


async def queues(connection: AsyncSession | AsyncConnection, names: Sequence[str]) -> Mapping[str, QueueFigures]:
    """How each of these queues stands now, and under ``other`` all others together, as they stood a minute ago."""
    now: datetime = (await connection.execute(select(func.clock_timestamp()))).scalar_one()
    figures = {each.name: _of(each, now) for each in await queue.states(connection, names)}
    others = (await connection.execute(_OTHERS, {"known": list(names)})).mappings().one()
    return {**figures, OTHER: QueueFigures(**others)}


async def workers(connection: AsyncSession | AsyncConnection) -> Mapping[str, WorkerFigures]:
    """How each worker stands that is up, by its id."""
    found = {}
    for each in await presence.workers(connection):
        if each.alive:
            slots = sum(each.queues.values())
            found[str(each.id)] = WorkerFigures(slots=slots, busy=min(each.running, slots), seen_at=each.seen_at)
    return found


def _of(state: QueueState, now: datetime) -> QueueFigures:
    return QueueFigures(
        ready=state.ready,
        scheduled=state.scheduled,
        running=state.running,
        oldest=0.0 if state.oldest is None else max(0.0, (now - state.oldest).total_seconds()),
        paused=state.paused_at is not None,
    )
