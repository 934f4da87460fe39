"""A paused queue is left alone by every worker; and no priority starves another."""

import asyncio

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from outbox import INJECTED, JobContext, Outbox, State, claim, queue
from outbox.connection import Link
from outbox.newjob import PRIORITIES
from tests import factories
from tests.database.workers import drained, in_state, working
from tests.factories import plant, plant_many, read

TASKS = {"noop": 8}


async def taken(link: Link) -> set[str]:
    wanted = {"default": 10, "mail": 10}
    return {each.queue for each in await claim.take(link, wanted, TASKS, factories.WORKER, 30)}


async def test_a_paused_queue_is_not_claimed_until_it_is_resumed(
    engine: AsyncEngine, session: AsyncSession, link: Link
) -> None:
    id = await plant(engine, queue="mail")
    await plant(engine)
    await queue.pause(session, "mail")
    assert [each.name for each in await queue.spoken_of(session)] == ["mail"]
    await session.commit()
    assert await taken(link) == {"default"}

    await queue.resume(session, "mail")
    assert await taken(link) == set(), "not before the commit"
    await session.commit()
    assert await taken(link) == {"mail"}
    assert (await read(engine, id)).state is State.RUNNING
    assert [each.paused_at for each in await queue.spoken_of(session)] == [None]


async def test_pausing_twice_keeps_the_first_time(session: AsyncSession) -> None:
    await queue.pause(session, "mail")
    [first] = await queue.spoken_of(session)
    await queue.pause(session, "mail")
    assert await queue.spoken_of(session) == [first]
    assert first.paused_at is not None


async def test_a_pause_that_is_rolled_back_was_none(engine: AsyncEngine, session: AsyncSession, link: Link) -> None:
    await plant(engine)
    await queue.pause(session, "default")
    await session.rollback()
    assert await taken(link) == {"default"}


async def test_what_runs_goes_on_and_enqueuing_too(
    engine: AsyncEngine, database_url: str, session: AsyncSession
) -> None:

    outbox, started, go = Outbox(), asyncio.Event(), asyncio.Event()

    @outbox.task()
    async def hold() -> None:
        started.set()
        await go.wait()

    first = await plant(engine, task="hold")
    async with working(outbox, database_url):
        await started.wait()
        await queue.pause(session, "default")
        second = hold.enqueue(session)
        await session.commit()
        go.set()
        await in_state(engine, first, State.SUCCEEDED)
        assert (await read(engine, second.id)).state is State.PENDING
        await queue.resume(session, "default")
        await session.commit()
        await in_state(engine, second.id, State.SUCCEEDED)


@pytest.mark.parametrize("name", ["", "a\0", "x" * 201])
async def test_what_no_queue_is_called_is_refused(session: AsyncSession, name: str) -> None:
    with pytest.raises(ValueError, match="queue"):
        await queue.pause(session, name)
    await queue.resume(session, name)


# Ageing.


def test_every_priority_is_first_in_its_turn_and_the_highest_almost_always() -> None:
    first = [claim.levels(turn)[0] for turn in range(claim.AGEING)]
    assert {priority: first.count(priority) for priority in PRIORITIES} == {3: claim.AGEING - 3, 2: 1, 1: 1, 0: 1}
    for turn in range(claim.AGEING):
        levels = claim.levels(turn)
        assert sorted(levels) == sorted(PRIORITIES)
        assert list(levels[1:]) == sorted(levels[1:], reverse=True)


async def test_a_low_priority_does_not_wait_until_all_high_ones_are_done(
    engine: AsyncEngine, database_url: str, db: asyncpg.Connection
) -> None:
    outbox, order = Outbox(), list[int]()

    @outbox.task()
    async def noop(n: int = 0, *, ctx: JobContext = INJECTED) -> None:
        order.append(n)

    for priority in (0, 1, 2):
        await plant(engine, priority=priority, payload={"n": -priority})
    await plant_many(engine, 100, priority=3)
    async with working(outbox, database_url, queues={"default": 1}, prefetch=0):
        await drained(engine)
    assert order[0] == 1, "the highest is first"
    assert max(order.index(-priority) for priority in (0, 1, 2)) <= 2 * claim.AGEING
