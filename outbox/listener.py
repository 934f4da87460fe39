"""Hears the hints that new jobs are there. Losing the connection, or every hint, only costs a polling pause."""

import asyncio
from collections.abc import Callable

import asyncpg

from outbox.connection import FAILURES, Link
from outbox.settings import WorkerSettings
from outbox.wakeup import CHANNEL

PING = 15.0
"""Seconds between two looks whether the connection is still there; a silent one may long be dead."""


async def listen(
    url: str,
    settings: WorkerSettings,
    wake: Callable[[], None],
    *,
    on_connected: Callable[[], None],
    on_lost: Callable[[], None],
) -> None:
    """Call ``wake`` whenever one of this worker's queues is named, until cancelled.

    :param on_connected: called when it listens.
    :param on_lost: called when it does not any more.
    """
    link = Link(url, settings, "outbox listener")

    def heard(_connection: object, _pid: int, _channel: str, queue: object) -> None:
        if queue in settings.queues:
            wake()

    listening: asyncpg.Connection | None = None
    try:
        while True:
            try:
                connection = await link.connection()
                if connection is not listening:
                    await connection.add_listener(CHANNEL, heard)
                    listening = connection
                    on_connected()
                    wake()  # whatever was said while nobody listened
                await link.fetch("select 1")
                await asyncio.sleep(PING)
            except FAILURES as exc:
                on_lost()
                link.drop()
                await link.pause(exc)
    finally:
        link.drop()
