"""What a worker tells of itself while it works: its attempts, the leases that it loses, and whether it is ready."""

import asyncio
import logging

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from outbox import Outbox, Retry, Snooze
from outbox.worker import Worker
from tests.database.workers import working
from tests.factories import plant, plant_many
from tests.waiting import eventually, until


@pytest.fixture(autouse=True)
def _told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


async def test_every_attempt_is_counted_to_the_last(
    engine: AsyncEngine, database_url: str, db: asyncpg.Connection
) -> None:
    outbox = Outbox()

    @outbox.task()
    async def noop(n: int) -> int:
        return n

    @outbox.task(retry=Retry(max_attempts=2, base=0, cap=0))
    async def fail() -> None:
        raise ValueError

    @outbox.task()
    async def later() -> Snooze:
        return Snooze(3600)

    await plant_many(engine, 200)
    await plant(engine, task="fail")
    await plant(engine, task="later")
    async with working(outbox, database_url) as (worker, _):

        async def is_over() -> bool:
            left = await db.fetch("select run_at > now() as later from outbox.live_job")
            return [row["later"] for row in left] == [True]

        await eventually(is_over)
    assert {key: counts.count for key, counts in worker.meter.total().items() if counts.count} == {
        ("default", "noop", "succeeded"): 200,
        ("default", "fail", "retried"): 1,
        ("default", "fail", "failed"): 1,
        ("default", "later", "snoozed"): 1,
    }
    assert all(sum(each.waits) == sum(each.runs) == each.count for each in worker.meter.total().values())
    assert worker.meter.leases_lost == 0


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
