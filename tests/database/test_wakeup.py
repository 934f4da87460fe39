"""Hints: sent after the commit, apart from it, only for what was committed; losing them costs nothing but time."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from outbox import Outbox
from outbox.connection import dsn
from outbox.wakeup import CHANNEL, Notifier
from tests.waiting import eventually, until

outbox = Outbox()


@outbox.task()
async def noop() -> None: ...


@pytest.fixture
async def heard(database_url: str) -> AsyncIterator[list[str]]:
    """The queues that are named on the channel."""
    listener = await asyncpg.connect(dsn(database_url))
    queues: list[str] = []

    def note(_connection: object, _pid: int, _channel: str, queue: object) -> None:
        queues.append(str(queue))

    await listener.add_listener(CHANNEL, note)
    yield queues
    await listener.close()


async def test_a_commit_names_its_queues_and_a_rollback_none(
    engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession], heard: list[str]
) -> None:
    async with Notifier(engine):
        async with sessions() as session:
            noop.options(queue="rolled back").enqueue(session)
            await session.flush()
            await session.rollback()
            noop.options(queue="mail").enqueue(session)
            noop.options(queue="mail").enqueue(session)
            noop.options(queue="it's; ü").enqueue(session)
            await session.commit()
            await session.commit()
            await outbox.enqueue_many(session, [noop.options(queue="bulk").job() for _ in range(100)])
            await session.commit()
        await until(lambda: "bulk" in heard)
    assert sorted(set(heard)) == ["bulk", "it's; ü", "mail"]


async def test_nothing_is_said_before_the_commit(
    engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession], heard: list[str]
) -> None:
    async with Notifier(engine):
        async with sessions() as early, sessions() as late:
            noop.options(queue="early").enqueue(early)
            await early.flush()
            async with early.begin_nested():
                noop.options(queue="early").enqueue(early)
            noop.options(queue="late").enqueue(late)
            await late.commit()
            await until(lambda: heard)
            assert heard == ["late"]
            await early.commit()
        await until(lambda: heard == ["late", "early"])


async def test_a_burst_of_commits_is_a_few_hints(
    engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession], heard: list[str]
) -> None:
    notifier = Notifier(engine)
    async with notifier:
        for _ in range(1000):
            notifier.hint(["mail"])
        await until(lambda: heard)
        async with sessions() as session:
            noop.options(queue="the last").enqueue(session)
            await session.commit()
        await until(lambda: "the last" in heard)
    assert heard.count("mail") < 10


async def test_without_a_notifier_a_commit_is_just_a_commit(
    sessions: async_sessionmaker[AsyncSession], engine: AsyncEngine, heard: list[str]
) -> None:
    async with sessions() as session:
        noop.options(queue="unheard").enqueue(session)
        await session.commit()
    async with Notifier(engine), sessions() as session:
        noop.options(queue="sentinel").enqueue(session)
        await session.commit()
        await until(lambda: heard)
    assert heard == ["sentinel"]


async def test_a_notifier_whose_connection_is_lost_says_later_what_is_new(
    engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession], heard: list[str], db: asyncpg.Connection
) -> None:
    async with Notifier(engine):
        async with sessions() as session:
            noop.options(queue="first").enqueue(session)
            await session.commit()
        await until(lambda: "first" in heard)
        await db.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where query ~ 'pg_notify' and pid <> pg_backend_pid()"
        )

        async def says_it_again() -> bool:
            async with sessions() as session:
                await session.execute(text("select 1"))
                noop.options(queue="again").enqueue(session)
                await session.commit()
            return "again" in heard

        await eventually(says_it_again)


async def test_a_hint_from_a_thread_is_heard(engine: AsyncEngine, heard: list[str]) -> None:
    notifier = Notifier(engine)
    async with notifier:
        await asyncio.to_thread(notifier.hint, ["from a thread"])
        await until(lambda: heard == ["from a thread"])
    await asyncio.to_thread(notifier.hint, ["after the end"])
