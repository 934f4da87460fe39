"""The hint that new jobs are there: sent after the business commit, apart from it, and allowed to get lost.

``NOTIFY`` inside the business transaction would make all commits of the database wait for one another (it holds a
database-wide lock through the commit), so it is sent by the enqueuing process from a connection of its own, once for
however many commits there were since the last. A hint that is lost costs a worker one polling pause, nothing else.
"""

import asyncio
import contextlib
import weakref
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

from sqlalchemy import Engine, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from outbox import events

CHANNEL = "outbox"
SPACING = 0.002
"""Seconds between two notifications of one process; the first of a burst goes out at once."""

_NOTIFY = text("select pg_notify(:channel, queue) from unnest(cast(:queues as text[])) as queue")

_notifiers: weakref.WeakKeyDictionary[Engine, "Notifier"] = weakref.WeakKeyDictionary()


class Notifier:
    """Sends a hint after each commit that enqueued jobs through ``engine``, while it is entered.

        async with Notifier(engine):
            yield  # the lifespan of a FastAPI application

    It holds one connection of the engine's pool, in autocommit.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._queues: set[str] = set()
        self._hinted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._run(), name="outbox-notifier")
        _notifiers[self._engine.sync_engine] = self
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        _notifiers.pop(self._engine.sync_engine, None)
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    def hint(self, queues: Iterable[str]) -> None:
        """Say that these queues have new jobs. Never blocks, never raises; safe from any thread."""
        self._queues.update(queues)
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._hinted.set)

    async def _run(self) -> None:
        while True:
            try:
                async with self._engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
                    await self._send_for_ever(connection)
            except Exception as exc:  # noqa: BLE001 - a hint may get lost for any reason, the next one must not
                events.emit(events.DEBUG, "hint_lost", error=exc)
                await asyncio.sleep(1)

    async def _send_for_ever(self, connection: AsyncConnection) -> None:
        while True:
            await self._hinted.wait()
            self._hinted.clear()
            queues, self._queues = self._queues, set()
            if queues:
                await connection.execute(_NOTIFY, {"channel": CHANNEL, "queues": sorted(queues)})
            await asyncio.sleep(SPACING)


def hint(bind: Any, queues: Iterable[str]) -> None:
    """Tell the notifier of this engine or connection, if there is one, that a commit brought jobs to these queues."""
    notifier = _notifiers.get(bind.engine) if bind is not None else None
    if notifier is not None:
        notifier.hint(queues)
