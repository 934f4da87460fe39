"""Claims that begin where the last one has left nothing find every job, however late its transaction commits."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from outbox import Outbox, State, claim, control, maintenance, marks, queue
from outbox.connection import Link
from outbox.context import Claim
from outbox.job import MAX_LOST
from outbox.marks import Marks
from outbox.outcome import RELEASED, Finished
from tests.factories import WORKER, plant, plant_many

Sessions = async_sessionmaker[AsyncSession]

outbox = Outbox()


@outbox.task()
async def noop() -> None: ...


async def take(link: Link, mine: Marks, slots: int = 1000, **options: Any) -> list[Claim]:
    return await claim.take(link, {"default": slots}, {"noop": 8}, WORKER, 30.0, marks=mine, **options)


async def take_all(link: Link, mine: Marks) -> list[Claim]:
    """As a worker does: again at once where something that was passed by may have come."""
    taken = await take(link, mine)
    while mine.again:
        taken += await take(link, mine)
    return taken


async def enqueue(sessions: Sessions, **options: Any) -> None:
    async with sessions.begin() as session:
        noop.options(**options).enqueue(session)


MARGIN = marks.MARGIN


@pytest.fixture(autouse=True)
def no_nets(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the sweep would find must be found without it, and nothing because it is only a moment old."""
    monkeypatch.setattr(marks, "SWEEP", 1e9)
    monkeypatch.setattr(marks, "MARGIN", timedelta(0))


@pytest.fixture
async def held_snapshot(engine: AsyncEngine) -> AsyncIterator[None]:
    """Somebody looks at the database all the while, and so keeps it from removing what is gone."""
    async with engine.connect() as looking:
        await looking.exec_driver_sql("set transaction isolation level repeatable read")
        await looking.execute(text("select 1 from outbox.live_job limit 1"))
        yield


@asynccontextmanager
async def late(sessions: Sessions, **options: Any) -> AsyncIterator[None]:
    """Enqueue a job in a transaction that commits at the end of the block."""
    async with sessions() as session, session.begin():
        noop.options(**options).enqueue(session)
        await session.flush()
        yield


@pytest.mark.parametrize("patience", [timedelta(seconds=3600), timedelta(0)])
async def test_a_job_that_commits_late_is_found_by_the_next_claim(
    sessions: Sessions, link: Link, monkeypatch: pytest.MonkeyPatch, patience: timedelta
) -> None:
    monkeypatch.setattr(marks, "PATIENCE", patience)
    mine = Marks()
    await take(link, mine)
    for _ in range(3):
        async with late(sessions), late(sessions, delay=0.05):
            for _ in range(5):
                await enqueue(sessions)
                assert len(await take_all(link, mine)) == 1
                await asyncio.sleep(0.05)
        assert len(await take_all(link, mine)) == 2, "they lie before what has been taken"
        assert not await take_all(link, mine)


async def test_one_that_was_prepared_is_found_however_late_it_commits(
    sessions: Sessions, link: Link, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    if int(await db.fetchval("select current_setting('max_prepared_transactions')")) == 0:
        pytest.skip("this server has no prepared transactions")  # somebody else's, named by OUTBOX_TEST_DATABASE
    monkeypatch.setattr(marks, "PATIENCE", timedelta(0))
    mine = Marks()
    await take(link, mine)
    await db.execute("begin; select outbox.enqueue('noop'); prepare transaction 'late'")
    for _ in range(3):
        await enqueue(sessions)
        assert len(await take_all(link, mine)) == 1
        await asyncio.sleep(0.05)
    await db.execute("commit prepared 'late'")
    assert len(await take_all(link, mine)) == 1


async def test_two_workers_with_different_views_leave_nothing(
    sessions: Sessions, link: Link, other_link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(marks, "PATIENCE", timedelta(seconds=0.02))
    monkeypatch.setattr(marks, "MARGIN", MARGIN)
    links, minds = [link, other_link], [Marks(), Marks()]
    count, going = 0, True
    taken: list[Claim] = []

    async def enqueue_some(pause: float) -> None:
        nonlocal count
        while going:
            async with late(sessions):
                await asyncio.sleep(pause)
            count += 1

    async def claim_some(n: int) -> None:
        while going:
            taken.extend(await take(links[n], minds[n], slots=3))

    everybody = [asyncio.create_task(enqueue_some(0.01 * n)) for n in range(8)]
    everybody += [asyncio.create_task(claim_some(n)) for n in range(2)]
    await asyncio.sleep(2)  # for so long they may get in each other's way; a longer time would find no less
    going = False
    await asyncio.gather(*everybody)
    for n in range(2):
        taken += await take_all(links[n], minds[n])
    ids = [each.id for each in taken]
    assert len(set(ids)) == len(ids) == count > 100


async def test_what_returns_to_waiting_is_found(sessions: Sessions, engine: AsyncEngine, link: Link) -> None:
    mine = Marks()
    await enqueue(sessions)
    [taken] = await take(link, mine)
    await take(link, mine)

    await claim.settle(link, [(taken, RELEASED)])
    [taken] = await take(link, mine)

    await plant(engine, "expired")
    await take(link, mine)
    await maintenance.rescue(link)
    [rescued] = await take(link, mine)

    await claim.settle(link, [(rescued, Finished(State.CANCELLED))])
    await take(link, mine)
    async with sessions() as session:
        # A transaction that is older than the requeue.
        await session.execute(text("select 1"))
        await take(link, mine)
        await control.requeue(session, rescued.id)
        await session.commit()
    assert [each.id for each in await take(link, mine)] == [rescued.id]
    assert taken.id != rescued.id


async def test_what_was_due_in_the_past_is_found(sessions: Sessions, link: Link, db: asyncpg.Connection) -> None:
    mine = Marks()
    await take(link, mine)
    yesterday = await db.fetchval("select now() - interval '1 day'")
    await enqueue(sessions, run_at=yesterday)
    await enqueue(sessions, run_at=yesterday, key="k")
    await db.execute("select outbox.enqueue('noop', run_at => now() - interval '1 day')")
    assert len(await take(link, mine)) == 3


async def test_what_replaces_a_job_is_found(sessions: Sessions, link: Link) -> None:
    mine = Marks()
    await enqueue(sessions, key="k", delay=3600)
    await take(link, mine)
    await enqueue(sessions, key="k", on_conflict="replace")
    assert len(await take(link, mine)) == 1


async def test_jobs_of_a_group_are_found_as_they_are_opened(sessions: Sessions, link: Link) -> None:
    mine = Marks()
    for _ in range(3):
        await enqueue(sessions, group="g")
    for _ in range(3):
        [taken] = await take(link, mine)
        assert not await take(link, mine)
        await enqueue(sessions)
        [other] = await take(link, mine)
        assert not await take(link, mine)
        await claim.settle(link, [(taken, Finished(State.SUCCEEDED)), (other, Finished(State.SUCCEEDED))])


async def test_what_comes_into_a_group_in_a_late_transaction_is_found(sessions: Sessions, link: Link) -> None:
    mine = Marks()
    async with late(sessions, group="g"):
        for n in range(3):
            await enqueue(sessions, group=f"other {n}")
            assert len(await take(link, mine)) == 1
    assert len(await take_all(link, mine)) == 1


async def test_what_waited_in_a_paused_queue_is_found(sessions: Sessions, link: Link) -> None:
    mine = Marks()
    async with sessions.begin() as session:
        await queue.pause(session, "default")
    await enqueue(sessions)
    assert not await take(link, mine)
    assert not await take(link, mine)
    async with sessions.begin() as session:
        await queue.resume(session, "default")
    assert len(await take(link, mine)) == 1


async def test_suspects_that_had_to_be_passed_over_are_found(engine: AsyncEngine, link: Link) -> None:
    mine = Marks()
    for _ in range(3):
        await plant(engine, lost=MAX_LOST - 1)
    assert len(await take(link, mine)) == 1
    assert not await take(link, mine, suspect=False)
    assert len(await take(link, mine)) == 1
    assert len(await take(link, mine)) == 1


async def test_what_somebody_had_locked_is_found_by_the_sweep(
    engine: AsyncEngine, link: Link, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = Marks()
    await plant(engine)
    async with db.transaction():
        await db.execute("select from outbox.live_job for update")
        for _ in range(2):
            assert not await take(link, mine)
    assert not await take(link, mine), "so far this test would show nothing"
    monkeypatch.setattr(mine, "_sweep_due", 0.0)
    assert len(await take(link, mine)) == 1


@pytest.mark.usefixtures("held_snapshot")
@pytest.mark.parametrize("spread", [True, False], ids=["one after the other", "all due at one moment"])
async def test_under_a_held_snapshot_a_claim_reads_no_more_than_before(
    engine: AsyncEngine, link: Link, db: asyncpg.Connection, *, spread: bool
) -> None:
    mine = Marks()
    await db.execute("alter table outbox.live_job set (autovacuum_enabled = off)")
    read = []
    for _ in range(6):
        await plant_many(engine, 2000)
        if not spread:
            await db.execute("update outbox.live_job set run_at = now()")
        while await take(link, mine, slots=500):
            pass
        await take(link, mine)
        before = await _pages(link, db)
        await take(link, mine)
        read.append(await _pages(link, db) - before)
    assert read[-1] <= read[0] + 8, read


async def _pages(link: Link, db: asyncpg.Connection) -> int:
    """Pages of the claim's index that have been read so far, by anybody."""
    await link.fetch("select pg_stat_force_next_flush()")
    return int(
        await db.fetchval(
            "select idx_blks_hit + idx_blks_read from pg_statio_user_indexes where indexrelname = 'live_job_claim'"
        )
    )
