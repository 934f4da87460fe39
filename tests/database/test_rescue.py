"""What dead workers leave behind is given back, counted, and ends when it has killed too many."""

import asyncio

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from outbox import State, claim, maintenance, sql
from outbox.connection import Link
from outbox.job import MAX_LOST
from tests import factories
from tests.factories import ago, plant, plant_many


async def test_an_expired_job_waits_again_and_is_due_at_once(engine: AsyncEngine, link: Link) -> None:
    id = await plant(engine, "expired", attempt=1, fence=4, progress={"done": 3})
    before = await factories.read(engine, id)
    assert await maintenance.rescue(link) == 1
    job = await factories.read(engine, id)
    assert (job.state, job.lost, job.attempt, job.fence, job.lease_until) == (State.PENDING, 1, 1, 4, None)
    assert job.run_at > before.run_at
    assert job.progress == {"done": 3}
    [error] = job.errors
    assert error.pop("at") > "2026"
    assert error.pop("message")
    assert error == {
        "type": "outbox.WorkerLost",
        "attempt": 2,
        "fence": 4,
        "worker_id": str(factories.WORKER),
        "traceback": "",
    }
    [taken] = await claim.take(link, {"default": 1}, {"noop": 8}, factories.WORKER, 30)
    assert (taken.attempt, taken.fence) == (2, 5)


async def test_what_is_not_expired_is_left_alone(engine: AsyncEngine, link: Link) -> None:
    for kind in factories.KINDS.keys() - {"expired"}:
        await plant(engine, kind)
    before = await factories.read_all(engine)
    assert await maintenance.rescue(link) == 0
    assert await factories.read_all(engine) == before


async def test_a_job_that_kills_its_workers_is_poison_and_fails(
    engine: AsyncEngine, link: Link, db: asyncpg.Connection
) -> None:
    id = await plant(engine)
    for n in range(1, MAX_LOST + 1):
        await db.execute("update outbox.live_job set run_at = now()")
        assert len(await claim.take(link, {"default": 1}, {"noop": 8}, factories.WORKER, 30)) == 1
        await db.execute("update outbox.live_job set lease_until = now() - interval '1 second'")
        assert await maintenance.rescue(link) == 1
        job = await factories.read(engine, id)
        assert (job.lost, job.fence, job.attempt) == (n, n, 0)
        assert job.state is (State.FAILED if n == MAX_LOST else State.PENDING)
    job = await factories.read(engine, id)
    assert [error["type"] for error in job.errors] == ["outbox.WorkerLost"] * MAX_LOST
    assert job.finished_at is not None
    assert job.lease_until is None


async def test_a_job_whose_cancel_was_asked_for_ends_as_cancelled(engine: AsyncEngine, link: Link) -> None:
    id = await plant(engine, "expired", cancel_requested_at=ago(2))
    poison = await plant(engine, "expired", cancel_requested_at=ago(2), lost=MAX_LOST - 1)
    assert await maintenance.rescue(link) == 2
    for each in (id, poison):
        job = await factories.read(engine, each)
        assert job.state is State.CANCELLED
        assert job.finished_at is not None


async def test_the_longest_expired_come_first_and_no_more_than_asked(engine: AsyncEngine, link: Link) -> None:
    ids = [await plant(engine, "expired", lease_until=ago(100 - n)) for n in range(6)]
    for step in (2, 4, 6):
        await link.fetch(sql.RESCUE, MAX_LOST, 2, [])
        running = [job.id for job in await factories.read_all(engine) if job.state is State.RUNNING]
        assert sorted(running) == sorted(ids[step:])


async def test_one_call_rescues_more_than_one_batch(engine: AsyncEngine, link: Link, db: asyncpg.Connection) -> None:
    count = maintenance.RESCUE_BATCH * 2 + 3
    await plant_many(engine, count, state="running")
    await db.execute("update outbox.live_job set lease_until = now() - interval '1 second'")
    await db.execute("update outbox.live_job set lost = $1 where (payload->>'n')::int % 2 = 0", MAX_LOST - 1)
    assert await maintenance.rescue(link) == count
    assert await factories.count(engine, "failed") == count // 2
    assert await factories.count(engine, "pending") == count - count // 2


async def test_a_row_that_is_being_settled_is_not_waited_for(
    engine: AsyncEngine, link: Link, db: asyncpg.Connection
) -> None:
    locked, other = await plant(engine, "expired", lease_until=ago(9)), await plant(engine, "expired")
    async with db.transaction():
        await db.execute("select from outbox.live_job where id = $1 for update", locked)
        assert await maintenance.rescue(link) == 1
    assert (await factories.read(engine, locked)).state is State.RUNNING
    assert (await factories.read(engine, other)).state is State.PENDING


async def test_two_rescuers_at_once_count_each_loss_once(
    engine: AsyncEngine, link: Link, other_link: Link, db: asyncpg.Connection
) -> None:
    await plant_many(engine, 2000, state="running")
    await db.execute("update outbox.live_job set lease_until = now() - interval '1 second'")
    first, second = await asyncio.gather(maintenance.rescue(link), maintenance.rescue(other_link))
    while await factories.count(engine, "running"):  # locked by the other at the very end
        first += await maintenance.rescue(link)
    assert first + second == 2000
    assert await db.fetchval("select count(*) from outbox.live_job where lost <> 1") == 0


@pytest.mark.parametrize("late", [State.SUCCEEDED, State.FAILED])
async def test_a_worker_that_comes_back_late_finds_its_job_gone(engine: AsyncEngine, link: Link, late: State) -> None:
    from outbox.outcome import Finished

    id = await plant(engine, "expired", lost=MAX_LOST - 1)
    await maintenance.rescue(link)
    zombie = factories.held(id)
    assert await claim.settle(link, [(zombie, Finished(late))]) == [zombie]
    assert (await factories.read(engine, id)).state is State.FAILED
    assert await factories.count(engine) == 1
