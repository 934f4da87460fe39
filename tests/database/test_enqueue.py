"""Jobs are written with the caller's transaction, in one statement, or not at all."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, create_engine, event, func, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker
from sqlmodel import Session as SQLModelSession
from sqlmodel.ext.asyncio.session import AsyncSession as SQLModelAsyncSession

from outbox import NewJob, Outbox, State, limit
from outbox.connection import dsn
from outbox.errors import EnqueueFailed
from outbox.newjob import Options
from tests import factories

outbox = Outbox()


@outbox.task()
async def noop(n: int = 0) -> None: ...


@outbox.task()
async def unlimited(n: int) -> None: ...


@outbox.task(queue="mail", priority=2, retry=3, tags=["receipt"])
async def send_receipt(order_id: int, *, email: str) -> None: ...


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "test_order"
    id: Mapped[int] = mapped_column(primary_key=True)
    note: Mapped[str] = mapped_column(unique=True)


@pytest.fixture(autouse=True)
async def business_tables(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)


@pytest.fixture
def psycopg(database_url: str) -> Iterator[Engine]:
    engine = create_engine("postgresql+psycopg" + dsn(database_url).removeprefix("postgresql"))
    yield engine
    engine.dispose()


@pytest.fixture
async def async_psycopg(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine("postgresql+psycopg" + dsn(database_url).removeprefix("postgresql"))
    yield engine
    await engine.dispose()


@contextmanager
def recorded(engine: AsyncEngine) -> Iterator[list[str]]:
    """What goes over the wire, COMMIT and ROLLBACK included."""
    said: list[str] = []

    def statement(_c: Any, _cursor: Any, sql: str, _p: Any, _context: Any, many: bool) -> None:
        said.append(" ".join(sql.split()) + (" MANY" if many else ""))

    def commit(_connection: Any) -> None:
        said.append("COMMIT")

    def rollback(_connection: Any) -> None:
        said.append("ROLLBACK")

    hooks = (("before_cursor_execute", statement), ("commit", commit), ("rollback", rollback))
    for name, hook in hooks:
        event.listen(engine.sync_engine, name, hook)
    try:
        yield said
    finally:
        for name, hook in hooks:
            event.remove(engine.sync_engine, name, hook)


def unstorable() -> NewJob:
    """A job that only the database refuses."""
    return NewJob("x" * 300, "{}", Options())


# The unit of work.


async def test_a_job_is_written_with_the_commit(engine: AsyncEngine, session: AsyncSession) -> None:
    job = send_receipt.enqueue(session, 7, email="é@example.org")
    await session.commit()

    row = await factories.read(engine, job.id)
    assert (row.task, row.queue, row.state, row.priority) == ("send_receipt", "mail", State.PENDING, 2)
    assert row.payload == {"order_id": 7, "email": "é@example.org"}
    assert (row.attempt, row.max_attempts, row.lost, row.fence, row.tags) == (0, 3, 0, 0, ["receipt"])
    for unset in ("worker_id", "lease_until", "started_at", "finished_at", "result", "cancel_requested_at"):
        assert getattr(row, unset) is None
    assert row.errors == []


async def test_nothing_is_visible_to_others_before_the_commit(engine: AsyncEngine, session: AsyncSession) -> None:
    noop.enqueue(session)
    assert await factories.count(engine) == 0
    await session.flush()
    assert await session.scalar(text("select count(*) from outbox.job")) == 1
    assert await factories.count(engine) == 0
    await session.commit()
    assert await factories.count(engine) == 1


@pytest.mark.parametrize("flushed", [False, True], ids=["before-the-flush", "after-the-flush"])
async def test_a_rollback_removes_the_jobs(engine: AsyncEngine, session: AsyncSession, flushed: bool) -> None:
    noop.enqueue(session)
    if flushed:
        await session.flush()
    await session.rollback()
    await session.commit()
    assert await factories.count(engine) == 0


@pytest.mark.parametrize("flushed", [False, True], ids=["before-the-flush", "after-the-flush"])
async def test_a_savepoint_rollback_removes_its_own_jobs_only(
    engine: AsyncEngine, session: AsyncSession, flushed: bool
) -> None:
    before = noop.enqueue(session, 1)
    savepoint = await session.begin_nested()
    noop.enqueue(session, 2)
    if flushed:
        await session.flush()
    await savepoint.rollback()
    after = noop.enqueue(session, 3)
    async with session.begin_nested():
        kept = noop.enqueue(session, 4)
    await session.commit()
    assert {job.id for job in await factories.read_all(engine)} == {before.id, after.id, kept.id}


async def test_a_business_error_takes_the_job_with_it(engine: AsyncEngine, session: AsyncSession) -> None:
    session.add(Order(note="twice"))
    await session.commit()
    session.add(Order(note="twice"))
    noop.enqueue(session)
    with pytest.raises(IntegrityError):
        await session.commit()
    await session.rollback()
    await session.commit()
    assert await factories.count(engine) == 0


async def test_closing_the_session_forgets_its_jobs(
    engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession]
) -> None:
    async with sessions() as session:
        noop.enqueue(session)
    async with sessions() as session:
        noop.enqueue(session)
        session.expunge_all()
        await session.commit()
    assert await factories.count(engine) == 0


async def test_a_query_sees_the_jobs_of_its_own_transaction(session: AsyncSession) -> None:
    noop.enqueue(session)
    assert len((await session.scalars(select(Order))).all()) == 0  # autoflush
    assert await session.scalar(text("select count(*) from outbox.live_job")) == 1


async def test_the_id_is_known_at_once_and_stays_readable(session: AsyncSession) -> None:
    first, second = noop.enqueue(session), noop.enqueue(session)
    assert first.id.version == 7
    assert first.id < second.id
    known = first.id
    await session.commit()
    assert first.id == known  # an expired attribute would need I/O here, and fail
    assert str(known) in repr(first)


# Every kind of session.


async def test_a_synchronous_session_on_psycopg(engine: AsyncEngine, psycopg: Engine) -> None:
    def work() -> UUID:
        with Session(psycopg) as session, session.begin():
            session.add(Order(note="sync"))
            nested = session.begin_nested()
            noop.enqueue(session, 1)
            session.flush()
            nested.rollback()
            return send_receipt.enqueue(session, 1, email="a@b").id

    id = await asyncio.to_thread(work)
    assert [job.id for job in await factories.read_all(engine)] == [id]
    assert (await factories.read(engine, id)).payload == {"order_id": 1, "email": "a@b"}


async def test_an_asynchronous_session_on_psycopg(engine: AsyncEngine, async_psycopg: AsyncEngine) -> None:
    async with AsyncSession(async_psycopg) as session, session.begin():
        job = noop.options(run_at=datetime(2030, 1, 1, tzinfo=UTC), tags=["a"]).enqueue(session, 5)
    row = await factories.read(engine, job.id)
    assert (row.run_at, row.tags, row.payload) == (datetime(2030, 1, 1, tzinfo=UTC), ["a"], {"n": 5})


async def test_a_scoped_session(engine: AsyncEngine, psycopg: Engine) -> None:
    def work() -> UUID:
        scoped = scoped_session(sessionmaker(psycopg))
        try:
            noop.enqueue(scoped, 1)
            scoped.rollback()
            job = noop.enqueue(scoped, 2)
            scoped.commit()
            return job.id
        finally:
            scoped.remove()

    id = await asyncio.to_thread(work)
    assert [job.id for job in await factories.read_all(engine)] == [id]


async def test_an_asynchronous_scoped_session(engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession]) -> None:
    scoped = async_scoped_session(sessions, asyncio.current_task)
    job = noop.enqueue(scoped, 2)
    await scoped.commit()
    await scoped.remove()
    assert [row.id for row in await factories.read_all(engine)] == [job.id]


async def test_sqlmodels_sessions(engine: AsyncEngine, psycopg: Engine) -> None:
    async with SQLModelAsyncSession(engine) as session:
        first = noop.enqueue(session, 1)
        await session.commit()
        noop.enqueue(session, 2)
        await session.rollback()

    def work() -> UUID:
        with SQLModelSession(psycopg) as session:
            job = noop.enqueue(session, 3)
            session.commit()
            return job.id

    second = await asyncio.to_thread(work)
    assert [row.id for row in await factories.read_all(engine)] == [first.id, second]


async def test_a_session_that_is_bound_per_class_writes_where_the_outbox_lives(
    engine: AsyncEngine, psycopg: Engine
) -> None:
    elsewhere = create_engine("sqlite://")

    def work() -> UUID:
        Base.metadata.create_all(elsewhere)
        with Session(binds={Order: elsewhere, NewJob: psycopg}) as session:
            session.add(Order(note="in sqlite"))
            job = noop.enqueue(session)
            session.commit()
            return job.id

    id = await asyncio.to_thread(work)
    await asyncio.to_thread(elsewhere.dispose)
    assert (await factories.read(engine, id)).id == id


# What it costs.


async def test_any_number_of_jobs_in_one_flush_is_one_statement(engine: AsyncEngine, session: AsyncSession) -> None:
    with recorded(engine) as said:
        for n in range(50):
            noop.options(priority=n % 4, delay=n).enqueue(session, n)
            send_receipt.enqueue(session, n, email="a@b")
        await session.commit()
    assert len(said) == 2
    assert said[0].startswith("insert into outbox.live_job")
    assert not said[0].endswith("MANY")
    assert said[1] == "COMMIT"
    assert await factories.count(engine) == 100


async def test_one_job_alone_is_written_as_many_are(engine: AsyncEngine, session: AsyncSession) -> None:
    """A single job has a statement of its own."""
    await limit.put(session, "task", "noop", limit.Limit(concurrency=1))
    await limit.put(session, "queue", "narrow", limit.Limit(concurrency=1))
    await session.commit()
    for each in (noop, noop.options(priority=3), noop.options(queue="narrow"), noop.options(queue="free"), unlimited):
        together = [each.enqueue(session, 1), each.enqueue(session, 1)]
        await session.flush()
        alone = each.enqueue(session, 1)
        await session.commit()
        rows = (
            (
                await session.execute(
                    text(
                        "select to_jsonb(j) - array['id', 'run_at', 'created_at'] "
                        "from outbox.live_job j where id = any (:ids)"
                    ),
                    {"ids": [job.id for job in (*together, alone)]},
                )
            )
            .scalars()
            .all()
        )
        assert len(rows) == 3
        assert rows[0] == rows[1] == rows[2]
        times = text("select run_at <= clock_timestamp() from outbox.live_job where id = :id")
        assert await session.scalar(times, {"id": alone.id})


async def test_a_business_transaction_pays_one_statement_and_no_commit_more(
    engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession]
) -> None:
    async def place(note: str, jobs: int) -> list[str]:
        with recorded(engine) as said:
            async with sessions() as session:
                session.add(Order(note=note))
                for n in range(jobs):
                    noop.enqueue(session, n)
                await session.commit()
        return said

    alone, with_one, with_four = await place("a", 0), await place("b", 1), await place("c", 4)
    extra = [statement for statement in with_one if statement not in alone]
    assert len(with_one) == len(with_four) == len(alone) + 1
    assert len(extra) == 1
    assert extra[0].startswith("insert into outbox.live_job")
    assert with_one.count("COMMIT") == 1


async def test_jobs_that_were_written_are_not_written_again(engine: AsyncEngine, session: AsyncSession) -> None:
    noop.enqueue(session)
    await session.flush()
    with recorded(engine) as said:
        session.add(Order(note="later"))
        await session.flush()
        await session.commit()
        await session.commit()
    assert not [statement for statement in said if "live_job" in statement]
    assert await factories.count(engine) == 1


# When the database refuses.


async def test_a_caught_failure_cannot_be_committed_as_if_it_were_success(
    engine: AsyncEngine, session: AsyncSession
) -> None:
    session.add(Order(note="lost"))
    await session.flush()
    session.add(unstorable())
    with pytest.raises(IntegrityError):
        await session.flush()
    with pytest.raises(EnqueueFailed):
        await session.commit()

    await session.rollback()
    job = noop.enqueue(session)
    await session.commit()
    assert [row.id for row in await factories.read_all(engine)] == [job.id]
    assert await session.scalar(select(func.count()).select_from(Order)) == 0


async def test_a_failure_outlives_a_savepoint_that_began_after_it(session: AsyncSession) -> None:
    session.add(unstorable())
    with pytest.raises(IntegrityError):
        await session.flush()
    savepoint = await session.begin_nested()
    with pytest.raises((DBAPIError, EnqueueFailed)):  # the transaction is aborted: no savepoint in it can succeed
        await session.execute(text("select 1"))
    await savepoint.rollback()
    with pytest.raises(EnqueueFailed):
        await session.commit()


async def test_a_savepoint_rollback_heals_a_failure_inside_it(engine: AsyncEngine, session: AsyncSession) -> None:
    kept = noop.enqueue(session)
    with pytest.raises(IntegrityError):
        async with session.begin_nested():
            session.add(unstorable())
    await session.commit()
    assert [row.id for row in await factories.read_all(engine)] == [kept.id]


async def test_a_failure_caught_inside_a_savepoint_cannot_release_it(
    engine: AsyncEngine, session: AsyncSession
) -> None:
    kept = noop.enqueue(session)
    savepoint = await session.begin_nested()
    session.add(unstorable())
    with pytest.raises(IntegrityError):
        await session.flush()
    with pytest.raises(EnqueueFailed):
        await savepoint.commit()
    await savepoint.rollback()
    await session.commit()
    assert [row.id for row in await factories.read_all(engine)] == [kept.id]


async def test_a_failure_at_the_commit_itself_is_raised(engine: AsyncEngine, session: AsyncSession) -> None:
    noop.enqueue(session)
    session.add(unstorable())
    with pytest.raises(IntegrityError):
        await session.commit()
    await session.rollback()
    await session.commit()
    assert await factories.count(engine) == 0


async def test_a_caught_failure_of_enqueue_many_cannot_be_committed(session: AsyncSession) -> None:
    with pytest.raises(IntegrityError):
        await outbox.enqueue_many(session, [noop.job(1), unstorable()])
    with pytest.raises(EnqueueFailed):
        await session.commit()
    await session.rollback()
    await session.commit()


# Options.


async def test_a_delay_is_reckoned_by_the_databases_clock(engine: AsyncEngine, session: AsyncSession) -> None:
    a = noop.options(delay=3600).enqueue(session)
    b = noop.options(delay=timedelta(days=2)).enqueue(session)
    c = noop.enqueue(session)
    await session.commit()
    for job, delay in ((a, 3600.0), (b, 172_800.0), (c, 0.0)):
        row = await factories.read(engine, job.id)
        assert (row.run_at - row.created_at).total_seconds() == pytest.approx(delay, abs=60)


async def test_a_delay_counts_from_the_flush_not_from_the_start_of_the_transaction(
    engine: AsyncEngine, session: AsyncSession
) -> None:
    started = await session.scalar(text("select now()"))
    await session.execute(text("select pg_sleep(0.05)"))
    job = noop.enqueue(session)
    await session.commit()
    row = await factories.read(engine, job.id)
    assert row.run_at > started
    assert row.created_at > started


async def test_run_at_priority_queue_attempts_and_tags_are_stored(engine: AsyncEngine, session: AsyncSession) -> None:
    moment = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)
    call = send_receipt.options(run_at=moment, priority=3, queue="x" * 200, max_attempts=32_767, tags=["vip", 'q"\\é'])
    job = call.enqueue(session, 1, email="e")
    plain = send_receipt.enqueue(session, 2, email="e")
    await session.commit()

    row = await factories.read(engine, job.id)
    assert (row.run_at, row.priority, row.queue, row.max_attempts) == (moment, 3, "x" * 200, 32_767)
    assert row.tags == ["vip", 'q"\\é']
    assert (await factories.read(engine, plain.id)).queue == "mail"


async def test_tasks_with_names_that_need_care_are_stored_as_they_are(
    engine: AsyncEngine, session: AsyncSession
) -> None:
    names = ["a,b", '{"x"}', "it's", "back\\slash", "NULL", "ü" * 200, "semi;colon--", "%s :n $1"]
    jobs = [NewJob(name, "{}", Options(queue=name, tags=[name])) for name in names]
    session.add_all(jobs)
    await session.commit()
    rows = await factories.read_all(engine)
    assert [(row.task, row.queue, row.tags) for row in rows] == [(name, name, [name]) for name in names]


# Thousands.


@pytest.mark.parametrize("on", ["session", "connection"])
async def test_ten_thousand_jobs_are_one_statement(engine: AsyncEngine, on: str) -> None:
    jobs = [noop.job(n) for n in range(10_000)]
    with recorded(engine) as said:
        if on == "session":
            async with AsyncSession(engine) as session:
                written = await outbox.enqueue_many(session, iter(jobs))
                await session.commit()
        else:
            async with engine.begin() as connection:
                written = await outbox.enqueue_many(connection, iter(jobs))
    assert written == jobs
    assert len(said) == 2
    assert await factories.count(engine) == 10_000
    some = await factories.read(engine, jobs[1234].id)
    assert some.payload == {"n": 1234}


@pytest.mark.parametrize("on", ["session", "connection"])
async def test_many_jobs_are_rolled_back_with_their_transaction(engine: AsyncEngine, on: str) -> None:
    if on == "session":
        async with AsyncSession(engine) as session:
            await outbox.enqueue_many(session, [noop.job(1), noop.job(2)])
            await session.rollback()
    else:
        async with engine.connect() as connection:
            await outbox.enqueue_many(connection, [noop.job(1), noop.job(2)])
            await connection.rollback()
    assert await factories.count(engine) == 0


async def test_no_jobs_are_no_statement(engine: AsyncEngine, session: AsyncSession) -> None:
    with recorded(engine) as said:
        assert await outbox.enqueue_many(session, []) == []
        async with engine.connect() as connection:
            assert await outbox.enqueue_many(connection, []) == []
    assert not [statement for statement in said if "live_job" in statement]


@pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])
async def test_strict_isolation_levels_enqueue_side_by_side(
    engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession], isolation: str
) -> None:
    async with sessions() as first, sessions() as second:
        for n, session in enumerate((first, second)):
            _ = await session.connection(execution_options={"isolation_level": isolation})
            session.add(Order(note=str(n)))
            for each in range(20):
                noop.enqueue(session, each)
            await session.flush()
        await first.commit()
        await second.commit()
    assert await factories.count(engine) == 40
