"""A message is accepted once, whoever races, and exactly if the transaction commits that does its work."""

import asyncio
import random

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from outbox import Outbox, inbox, maintenance
from outbox.connection import Link
from tests import factories
from tests.waiting import eventually

Sessions = async_sessionmaker[AsyncSession]

outbox = Outbox()


@outbox.task()
async def noop(n: int = 0) -> None: ...


async def test_the_first_time_it_is_new_and_then_no_more(sessions: Sessions) -> None:
    seen = []
    for _ in range(3):
        async with sessions.begin() as session:
            seen.append(await inbox.accept(session, "payments", "m1"))
    assert seen == [True, False, False]


async def test_sources_and_ids_do_not_disturb_each_other(sessions: Sessions) -> None:
    async with sessions.begin() as session:
        for source, id in (("a", "b"), ("ab", "c"), ("a", "c"), ("b", "b")):
            assert await inbox.accept(session, source, id)


async def test_rolled_back_it_is_new_again_and_so_is_a_savepoint(sessions: Sessions) -> None:
    async with sessions() as session:
        assert await inbox.accept(session, "payments", "m1")
        await session.rollback()
    async with sessions.begin() as session:
        async with session.begin_nested() as savepoint:
            assert await inbox.accept(session, "payments", "m1")
            await savepoint.rollback()
        assert await inbox.accept(session, "payments", "m1")


@pytest.mark.parametrize("commits", [True, False])
async def test_the_second_waits_for_the_fate_of_the_first(
    sessions: Sessions, db: asyncpg.Connection, commits: bool
) -> None:
    async def second() -> bool:
        async with sessions.begin() as session:
            return await inbox.accept(session, "payments", "m1")

    async def it_waits() -> bool:
        return bool(await db.fetchval("select exists (select from pg_locks where not granted)"))

    async with sessions() as session:
        assert await inbox.accept(session, "payments", "m1")
        waiting = asyncio.create_task(second())
        await eventually(it_waits)
        await (session.commit() if commits else session.rollback())
    assert await waiting is not commits


async def test_of_many_at_once_its_work_is_done_once(engine: AsyncEngine, sessions: Sessions) -> None:
    choice = random.Random(7)

    async def deliver(message: int) -> None:
        await asyncio.sleep(choice.random() / 100)
        async with sessions() as session:
            if await inbox.accept(session, "payments", str(message)):
                noop.enqueue(session, message)
            if choice.random() < 0.3:
                await session.rollback()
            else:
                await session.commit()

    for _ in range(4):
        await asyncio.gather(*(deliver(n) for n in range(10) for _ in range(3)))
    jobs = [job.payload["n"] for job in await factories.read_all(engine)]
    assert sorted(jobs) == list(range(10))


async def test_it_costs_a_statement(sessions: Sessions, sent: list[str]) -> None:
    async with sessions.begin() as session:
        _ = await session.connection()
        sent.clear()
        await inbox.accept(session, "payments", "m1")
    assert len(sent) <= 1


async def test_old_ones_are_pruned(sessions: Sessions, link: Link, db: asyncpg.Connection) -> None:
    async with sessions.begin() as session:
        for id in ("old", "young"):
            await inbox.accept(session, "payments", id)
    await db.execute("update outbox.inbox set accepted_at = now() - interval '15 days' where message_id = 'old'")
    await maintenance.keep_partitions(link, 14)
    assert [row["message_id"] for row in await db.fetch("select message_id from outbox.inbox")] == ["young"]


@pytest.mark.parametrize(("source", "id"), [("", "m"), ("s", ""), ("s", "x" * 301), ("s" * 1001, "m"), ("s", "a\0b")])
async def test_what_cannot_be_stored_is_refused(sessions: Sessions, source: str, id: str) -> None:
    async with sessions() as session:
        with pytest.raises(ValueError, match=r"source|message_id"):
            await inbox.accept(session, source, id)
        assert await inbox.accept(session, "s", "m"), "the transaction is as good as before"
