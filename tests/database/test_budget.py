"""How many statements a worker sends: few while idle, and per batch, not per job, while busy."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from outbox import Outbox, WorkerSettings, sql
from outbox.worker import Worker
from tests import factories
from tests.factories import plant_many
from tests.waiting import eventually


@pytest.fixture
def wake_up() -> bool:
    """Whether the worker listens."""
    return False


@pytest.fixture
async def worker(database_url: str, wake_up: bool) -> AsyncIterator[Worker]:
    outbox = Outbox()

    @outbox.task()
    async def noop(n: int) -> int:
        return n

    settings = WorkerSettings(queues={"default": 20}, wake_up=wake_up, poll_min=0.01, poll_max=0.2)
    worker = Worker(outbox, database_url, settings)
    running = asyncio.create_task(worker.run())
    yield worker
    worker.stop()
    assert await asyncio.wait_for(running, 60)


async def test_a_drain_costs_a_few_statements_for_hundreds_of_jobs(
    engine: AsyncEngine, sent: list[str], worker: Worker
) -> None:
    await plant_many(engine, 5000)

    async def drained() -> bool:
        return await factories.count(engine, "succeeded") == 5000

    await eventually(drained)
    claims, settles = sent.count(sql.CLAIM), sent.count(sql.FINISH)
    assert settles >= 1
    assert claims + settles < 5000 / 10


@pytest.mark.parametrize(
    ("wake_up", "pause"),
    [pytest.param(False, 0.2, id="polling"), pytest.param(True, 0.4, id="listening", marks=pytest.mark.slow)],
)
async def test_an_idle_worker_asks_at_the_longest_pause_and_for_nothing_else(
    engine: AsyncEngine, sent: list[str], worker: Worker, pause: float
) -> None:
    async def settled_down() -> bool:
        return sent.count(sql.CLAIM) >= 14

    await eventually(settled_down)
    sent.clear()
    started = asyncio.get_running_loop().time()

    async def asked_again() -> bool:
        return sent.count(sql.CLAIM) >= 12

    await eventually(asked_again)
    passed = asyncio.get_running_loop().time() - started
    # A loaded machine only makes it ask less often: the bound is one-sided.
    assert sent.count(sql.CLAIM) <= passed / (pause * 0.8) + 2
    assert sql.FINISH not in sent
    assert sql.POSTPONE not in sent
    assert sql.RENEW not in sent
