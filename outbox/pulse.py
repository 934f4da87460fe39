"""Tells open pages that something has changed, whatever it was, so that they look again."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from outbox import events
from outbox.watch import WatchClosed

BEAT = 2.0
"""Seconds between two looks, however many listen."""

# Cheap, and different whenever something is that a page shows; what only ages is looked at every ten seconds.
_LOOK = text(
    """
    select (select sum(count) from outbox.statistic where seconds = 60 and starts_at > now() - interval '2 minutes'),
           (select id from outbox.live_job order by id desc limit 1),
           (select max(started_at) from outbox.live_job where lease_until is not null),
           (select id from outbox.audit order by id desc limit 1),
           (select string_agg(id::text || coalesce(stopping_at::text, ''), ',' order by id) from outbox.worker
            where seen_at > clock_timestamp() - make_interval(secs => lease)),
           date_bin('10 seconds', now(), 'epoch')
    """
)


class Listener:
    """One who wants to hear of changes."""

    def __init__(self) -> None:
        self.told = asyncio.Event()
        self.told.set()
        self.closed = False

    async def next(self) -> None:
        """Return once something has changed since the last time; the first time at once.

        :raises WatchClosed: if the process is stopping.
        """
        if not self.closed:
            await self.told.wait()
        if self.closed:
            raise WatchClosed
        self.told.clear()


class Pulse:
    """Looks for everybody whether anything has changed, while somebody listens.

    :ivar looks: how many times it has looked.
    """

    def __init__(self, sessions: async_sessionmaker[AsyncSession]) -> None:
        self._sessions = sessions
        self._listeners: set[Listener] = set()
        self._looking: asyncio.Task[None] | None = None
        self._closed = False
        self.looks = 0

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Listener]:
        """Hear of changes until the end of the block."""
        listener = Listener()
        listener.closed = self._closed
        self._listeners.add(listener)
        if self._looking is None and not self._closed:
            self._looking = asyncio.create_task(self._look_for_ever(), name="outbox-pulse")
        try:
            yield listener
        finally:
            self._listeners.discard(listener)
            if not self._listeners:
                self._rest()

    def open(self) -> None:
        """Let people listen, after it was closed."""
        self._closed = False

    def close(self) -> None:
        """Have all listeners end, now and whoever comes; from the event loop's own thread."""
        self._closed = True
        for listener in self._listeners:
            listener.closed = True
            listener.told.set()
        self._rest()

    def _rest(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None

    async def _look_for_ever(self) -> None:
        seen: object = None
        while True:
            self.looks += 1
            try:
                async with self._sessions() as session:
                    now: object = (await session.execute(_LOOK)).one()
            except Exception as exc:  # noqa: BLE001 - whatever it was, they still listen
                events.emit(events.WARNING, "watch_failed", error=exc, waiting=len(self._listeners))
                now = seen
            if now != seen:
                seen = now
                for listener in self._listeners:
                    listener.told.set()
            await asyncio.sleep(BEAT)
