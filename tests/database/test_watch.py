"""Any number of waiters, one query for all of them, and nobody misses the end."""

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

import asyncpg
import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from outbox import State, claim, control
from outbox.connection import Link
from outbox.outcome import Finished
from outbox.watch import Watch, WatchClosed
from tests.factories import held, new_id, plant
from tests.waiting import until

Sessions = async_sessionmaker[AsyncSession]


@pytest.fixture
async def watch(sessions: Sessions) -> AsyncIterator[Watch]:
    watch = Watch(sessions)
    yield watch
    watch.close()


async def finish(link: Link, *ids: UUID) -> None:
    assert await claim.settle(link, [(held(id), Finished(State.SUCCEEDED, '"done"')) for id in ids]) == []


async def test_the_first_word_is_how_the_job_is_now(engine: AsyncEngine, watch: Watch) -> None:
    id = await plant(engine, "running")
    async with watch.waiting_for(id) as waiter:
        job = await waiter.next()
    assert job is not None
    assert (job.id, job.state) == (id, State.RUNNING)


async def test_every_later_one_is_a_change(engine: AsyncEngine, watch: Watch, link: Link) -> None:
    id, other = await plant(engine, "running"), await plant(engine, "running")
    async with watch.waiting_for(id) as waiter:
        await waiter.next()
        following = asyncio.create_task(waiter.next())
        await finish(link, other)
        done, _ = await asyncio.wait({following}, timeout=0.5)
        assert not done
        await finish(link, id)
        job = await following
    assert job is not None
    assert (job.state, job.result) == (State.SUCCEEDED, "done")


async def test_progress_and_a_requeue_are_changes(
    engine: AsyncEngine, watch: Watch, db: asyncpg.Connection, sessions: Sessions
) -> None:
    id = await plant(engine, "failed")
    async with watch.waiting_for(id) as waiter:
        await waiter.next()
        async with sessions.begin() as session:
            await control.requeue(session, id)
        job = await waiter.next()
        assert job is not None
        assert job.state is State.PENDING
        await db.execute("update outbox.live_job set progress = '{\"done\": 1}'")
        job = await waiter.next()
    assert job is not None
    assert job.progress == {"done": 1}


async def test_a_job_that_is_not_there_or_goes_is_told_as_none(
    engine: AsyncEngine, watch: Watch, sessions: Sessions
) -> None:
    id = await plant(engine, "running")
    async with watch.waiting_for(new_id()) as nobody, watch.waiting_for(id) as waiter:
        await waiter.next()
        waiting = asyncio.create_task(nobody.next())
        async with sessions.begin() as session:
            await session.execute(text("delete from outbox.live_job"))
        assert await waiter.next() is None
        done, _ = await asyncio.wait({waiting}, timeout=0.3)
        if done:
            assert waiting.result() is None
        waiting.cancel()


async def test_ten_thousand_waiters_are_one_query_at_a_time(engine: AsyncEngine, watch: Watch, link: Link) -> None:
    ids = [await plant(engine, "running") for _ in range(50)]
    said: list[str] = []

    @event.listens_for(engine.sync_engine, "before_cursor_execute")
    def note(_connection: object, _cursor: object, statement: str, *_more: object) -> None:
        said.append(statement)

    heard: list[State] = []

    async def wait(id: UUID) -> None:
        async with watch.waiting_for(id) as waiter:
            while (job := await waiter.next()) is not None and not job.done:
                pass
            assert job is not None
            heard.append(job.state)

    waiting = [asyncio.create_task(wait(ids[n % 50])) for n in range(10_000)]
    await until(lambda: len(said) >= 4)
    assert not heard
    looks = len(said)
    await finish(link, *ids)
    await asyncio.gather(*waiting)
    assert heard == [State.SUCCEEDED] * 10_000
    # However many wait: a look, and one more statement where something has changed.
    assert len(said) - looks <= 6
    assert all("any" in statement.lower() for statement in said)


async def test_it_rests_while_nobody_waits(engine: AsyncEngine, watch: Watch) -> None:
    said: list[str] = []

    @event.listens_for(engine.sync_engine, "before_cursor_execute")
    def note(_connection: object, _cursor: object, statement: str, *_more: object) -> None:
        said.append(statement)

    id = await plant(engine, "running")
    async with watch.waiting_for(id) as waiter:
        await waiter.next()
    await asyncio.sleep(0.3)  # a look that was under way
    looks = len(said)
    await asyncio.sleep(0.5)
    assert len(said) == looks
    async with watch.waiting_for(id) as waiter:
        assert await waiter.next() is not None


async def test_who_waits_is_sent_home_at_the_end(engine: AsyncEngine, watch: Watch) -> None:
    id = await plant(engine, "running")
    async with watch.waiting_for(id) as waiter:
        await waiter.next()
        following = asyncio.create_task(waiter.next())
        await asyncio.sleep(0)
        watch.close()
        with pytest.raises(WatchClosed):
            await following
    async with watch.waiting_for(id) as waiter:
        with pytest.raises(WatchClosed):
            await waiter.next()


async def test_a_lost_database_is_waited_out(
    engine: AsyncEngine, watch: Watch, db: asyncpg.Connection, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbox.watch.MAX_PAUSE", 0.05)
    id = await plant(engine, "running")
    async with watch.waiting_for(id) as waiter:
        await waiter.next()
        await db.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where pid <> pg_backend_pid() and datname = current_database() and application_name = ''"
        )
        await finish(link, id)
        job = await waiter.next()
    assert job is not None
    assert job.state is State.SUCCEEDED
