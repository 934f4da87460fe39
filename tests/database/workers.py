"""Workers of this process on the test's database, and the facts that tests wait for."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from outbox import Outbox, State, WorkerSettings
from outbox.worker import Worker
from tests import factories
from tests.factories import read
from tests.waiting import eventually


def settings(**changes: Any) -> WorkerSettings:
    defaults: dict[str, Any] = {"queues": {"default": 10}, "wake_up": False, "poll_max": 0.05, "grace": 30.0}
    return WorkerSettings(**{**defaults, **changes})


@asynccontextmanager
async def working(
    outbox: Outbox, url: str, *, stop: Callable[[Worker], None] | None = None, **changes: Any
) -> AsyncIterator[tuple[Worker, "asyncio.Task[bool]"]]:
    """A worker that runs for the length of the block, and is stopped in good order."""
    worker = Worker(outbox, url, settings(**changes))
    running = asyncio.create_task(worker.run())
    try:
        yield worker, running
        if not running.done():
            worker.stop()
        assert await asyncio.wait_for(running, 60)
    finally:
        if not running.done():
            worker.stop()
            worker.stop()
            await asyncio.wait({running}, timeout=30)


async def drained(engine: AsyncEngine) -> None:
    async def no_job_lives() -> bool:
        # One look: between two, a job could slip from the one state into the other.
        return await factories.count(engine, "pending", "running") == 0

    await eventually(no_job_lives)


async def in_state(engine: AsyncEngine, id: UUID, state: State) -> None:
    async def reached() -> bool:
        return (await read(engine, id)).state is state

    await eventually(reached)
