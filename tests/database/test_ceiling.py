"""A queue with a ceiling takes no more jobs while so many wait, and says so by an error that people can act on."""

import asyncpg
import pytest
from sqlalchemy import create_engine, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session

from outbox import Outbox, queue
from outbox.errors import EnqueueFailed, QueueFull
from tests import factories
from tests.factories import plant, plant_many

Sessions = async_sessionmaker[AsyncSession]

outbox = Outbox()


@outbox.task(queue="mail")
async def noop(n: int = 0) -> None: ...


@pytest.fixture(autouse=True)
async def at_most_three(sessions: Sessions) -> None:
    async with sessions.begin() as session:
        await queue.set_ceiling(session, "mail", 3)


async def enqueue(sessions: Sessions, **options: str) -> None:
    async with sessions.begin() as session:
        noop.options(**options).enqueue(session)  # type: ignore[arg-type]


async def test_below_the_ceiling_jobs_are_taken_and_at_it_no_more(engine: AsyncEngine, sessions: Sessions) -> None:
    for _ in range(3):
        await enqueue(sessions)
    with pytest.raises(QueueFull, match="mail") as caught:
        await enqueue(sessions)
    assert caught.value.queue == "mail"
    assert await factories.count(engine) == 3
    await enqueue(sessions, queue="another")


@pytest.mark.parametrize("way", ["flush", "many", "sql", "psycopg"])
async def test_every_door_is_closed(engine: AsyncEngine, sessions: Sessions, database_url: str, way: str) -> None:
    await plant_many(engine, 3, queue="mail")
    async with sessions() as session:
        if way == "flush":
            noop.enqueue(session)
            with pytest.raises(QueueFull, match="mail"):
                await session.flush()
            with pytest.raises(EnqueueFailed, match="roll it back"):
                await session.commit()
        elif way == "many":
            with pytest.raises(QueueFull, match="mail"):
                await outbox.enqueue_many(session, [noop.job(n) for n in range(3)])
    if way == "sql":
        db = await asyncpg.connect(
            make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
        )
        with pytest.raises(asyncpg.PostgresError, match="queue mail is full") as refused:
            await db.execute("select outbox.enqueue('noop', queue => 'mail')")
        assert refused.value.sqlstate == "OB503"
        await db.close()
    elif way == "psycopg":
        sync = create_engine(make_url(database_url).set(drivername="postgresql+psycopg"))
        with Session(sync) as session:
            noop.enqueue(session)
            with pytest.raises(QueueFull, match="mail"):
                session.flush()
        sync.dispose()
    assert await factories.count(engine) == 3


@pytest.mark.parametrize("kind", ["running", "expired"])
async def test_what_runs_does_not_count(engine: AsyncEngine, sessions: Sessions, kind: str) -> None:
    for _ in range(3):
        await plant(engine, kind, queue="mail")
    await enqueue(sessions)


async def test_what_is_scheduled_or_limited_counts(engine: AsyncEngine, sessions: Sessions) -> None:
    await plant(engine, "scheduled", queue="mail")
    await plant(engine, queue="mail", limited=True)
    await plant(engine, queue="mail", limited=True)
    with pytest.raises(QueueFull):
        await enqueue(sessions)


async def test_without_its_ceiling_it_takes_all_again(engine: AsyncEngine, sessions: Sessions) -> None:
    await plant_many(engine, 5, queue="mail")
    async with sessions.begin() as session:
        await queue.set_ceiling(session, "mail", None)
        assert [(each.name, each.ceiling) for each in await queue.spoken_of(session)] == [("mail", None)]
    await enqueue(sessions)


async def test_a_savepoint_saves_the_rest_of_the_transaction(engine: AsyncEngine, sessions: Sessions) -> None:
    await plant_many(engine, 3, queue="mail")
    async with sessions.begin() as session:
        with pytest.raises(QueueFull):
            async with session.begin_nested():
                noop.enqueue(session)
        noop.options(queue="another").enqueue(session)
    assert await factories.count(engine) == 4


async def test_no_more_is_read_than_up_to_the_ceiling(
    engine: AsyncEngine, sessions: Sessions, db: asyncpg.Connection
) -> None:
    await db.execute("alter table outbox.live_job set (autovacuum_enabled = off)")
    await plant_many(engine, 20_000, queue="mail")

    async def read() -> int:
        await db.execute("select pg_stat_force_next_flush()")
        return int(await db.fetchval("select sum(idx_tup_read) from pg_stat_user_indexes where relname = 'live_job'"))

    before = await read()
    with pytest.raises(asyncpg.PostgresError):
        await db.execute("select outbox.has_room(array['mail'])")
    assert await read() - before < 20


@pytest.mark.parametrize(("name", "ceiling"), [("", 1), ("mail", -1), ("mail", 2_000_000)])
async def test_a_ceiling_that_makes_no_sense_is_refused(sessions: Sessions, name: str, ceiling: int) -> None:
    async with sessions() as session:
        with pytest.raises(ValueError, match=r"queue|ceiling"):
            await queue.set_ceiling(session, name, ceiling)
