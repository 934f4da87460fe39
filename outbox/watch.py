"""Tell any number of waiters when their jobs change, with one query for all of them.

Whoever waits for a job, by a long poll or as a stream, holds no connection meanwhile: all jobs that a process waits for
are looked at together, again and again. A change is known by the row's own version, so that nothing is read whole
unless it has changed.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from outbox import events, status
from outbox.job import Job

PAUSE = 0.1
"""Seconds at least between two looks."""

SHARE = 0.1
"""Of the time at most that looking may take; where a look is slow, looks become rare."""

MAX_PAUSE = 2.0

_VERSIONS = text(
    "select id, concat(xmin, '/', ctid) as version from outbox.live_job where id = any (cast(:ids as uuid[]))"
)


class WatchClosed(Exception):
    """The process is stopping; nothing more will be told."""


class _Channel:
    """What is known of one job, and who wants to hear of it.

    :ivar version: of its live row, None once it has left the table; empty before the first look.
    :ivar news: how many times something was told.
    """

    def __init__(self) -> None:
        self.waiters = 0
        self.version: str | None = ""
        self.job: Job | None = None
        self.news = 0
        self.told = asyncio.Event()

    def tell(self, version: str | None, job: Job | None) -> None:
        """Have all waiters know what the job is now."""
        self.version, self.job = version, job
        self.news += 1
        self.wake()

    def wake(self) -> None:
        """Have all waiters look."""
        self.told.set()
        self.told = asyncio.Event()


class Waiter:
    """One who waits for a job to change."""

    def __init__(self, watch: "Watch", channel: _Channel) -> None:
        self._watch = watch
        self._channel = channel
        self._heard = 0

    async def next(self) -> Job | None:
        """The job as it is once it has changed since the last time; the first time, as it is now. None if it is gone.

        Changes that follow each other closely may be told as one.

        :raises WatchClosed: if the process is stopping.
        """
        while self._heard == self._channel.news:
            self._watch.refuse_if_closed()
            await self._channel.told.wait()
        self._heard = self._channel.news
        return self._channel.job


class Watch:
    """Watches jobs for those of this process that wait for them, and rests while nobody does."""

    def __init__(self, sessions: async_sessionmaker[AsyncSession]) -> None:
        self._sessions = sessions
        self._channels: dict[UUID, _Channel] = {}
        self._wanted = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None
        self._closed = False

    @asynccontextmanager
    async def waiting_for(self, id: UUID) -> AsyncIterator[Waiter]:
        """Hear of this job until the end of the block."""
        channel = self._channels.setdefault(id, _Channel())
        channel.waiters += 1
        if self._looking is None and not self._closed:
            self._looking = asyncio.create_task(self._look_for_ever(), name="outbox-watch")
        self._wanted.set()
        try:
            yield Waiter(self, channel)
        finally:
            channel.waiters -= 1
            if not channel.waiters:
                del self._channels[id]

    def open(self) -> None:
        """Let people wait, after it was closed."""
        self._closed = False

    def close(self) -> None:
        """Have all waiters end, now and whoever comes; from the event loop's own thread."""
        self._closed = True
        for channel in self._channels.values():
            channel.wake()
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None

    def refuse_if_closed(self) -> None:
        """Tell a waiter that there is nothing to wait for.

        :raises WatchClosed: if so.
        """
        if self._closed:
            raise WatchClosed

    async def _look_for_ever(self) -> None:
        while True:
            if not self._channels:
                self._wanted.clear()
                await self._wanted.wait()
            began = time.monotonic()
            try:
                await self._look()
            except Exception as exc:  # noqa: BLE001 - whatever it was, they still wait
                events.emit(events.WARNING, "watch_failed", error=exc, waiting=len(self._channels))
                await asyncio.sleep(MAX_PAUSE)
            took = time.monotonic() - began
            await asyncio.sleep(min(max(PAUSE, took / SHARE - took), MAX_PAUSE))

    async def _look(self) -> None:
        ids = list(self._channels)
        async with self._sessions() as session:
            rows = await session.execute(_VERSIONS, {"ids": [str(id) for id in ids]})
            versions: dict[UUID, str | None] = {row.id: row.version for row in rows}
            changed = [id for id in ids if versions.get(id) != self._version(id)]
            jobs = {job.id: job for job in await self._read(session, changed)}
        for id in changed:
            if id in self._channels:
                self._channels[id].tell(versions.get(id), jobs.get(id))

    def _version(self, id: UUID) -> str | None:
        channel = self._channels.get(id)
        return None if channel is None else channel.version

    async def _read(self, session: AsyncSession, ids: Sequence[UUID]) -> list[Job]:
        return await status.several(session, ids) if ids else []
