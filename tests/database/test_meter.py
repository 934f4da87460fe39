"""What a worker tells of itself while it works: the leases that it loses, and whether it is ready.

Its attempts: see ``test_statistic``.
"""

import asyncio
import logging

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from outbox import Outbox
from outbox.worker import Worker
from tests.database.workers import working
from tests.factories import plant
from tests.waiting import until


@pytest.fixture(autouse=True)
def _told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


@pytest.mark.parametrize(
    ("lease", "found_by"), [(3600.0, "lease_lost"), (1.0, "lease_late")], ids=["by the settle", "by a heartbeat"]
)
async def test_a_lease_that_was_lost_counts_once_whoever_finds_out(
    engine: AsyncEngine,
    database_url: str,
    db: asyncpg.Connection,
    caplog: pytest.LogCaptureFixture,
    lease: float,
    found_by: str,
) -> None:
    outbox, started, go = Outbox(), asyncio.Event(), asyncio.Event()

    @outbox.task()
    async def hold() -> None:
        started.set()
        while not go.is_set():
            try:
                await go.wait()
            except asyncio.CancelledError:  # it takes its time to stop
                continue

    await plant(engine, task="hold")
    async with working(outbox, database_url, lease=lease) as (worker, _):
        await started.wait()
        await db.execute("update outbox.live_job set fence = fence + 1, worker_id = gen_random_uuid()")
        if found_by == "lease_late":
            await until(lambda: "lease_late" in caplog.text)
        go.set()
        await until(lambda: "lease_lost" in caplog.text)
    assert worker.meter.leases_lost == 1


async def test_a_worker_is_ready_while_its_heartbeat_reaches_the_database(
    database_url: str, db: asyncpg.Connection
) -> None:
    outbox = Outbox()

    @outbox.task()
    async def noop() -> None: ...

    assert not Worker(outbox, database_url).is_ready
    async with working(outbox, database_url, lease=1.0) as (worker, _):
        await until(lambda: worker.is_ready)
        await db.execute("alter table outbox.worker rename to gone")
        await until(lambda: not worker.is_ready)
        await db.execute("alter table outbox.gone rename to worker")
        await until(lambda: worker.is_ready)
