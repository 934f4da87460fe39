"""A handler's business writes, the jobs it enqueues and its own settled state commit together, or not at all."""

import asyncio
from typing import Any

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session

from outbox import INJECTED, Cancel, JobContext, Outbox, Retry, Snooze, State, sql
from tests import factories
from tests.database.workers import drained, in_state, working
from tests.factories import plant, plant_many, read
from tests.waiting import eventually, until

ONCE = Retry(max_attempts=1)
TWICE = Retry(max_attempts=2, base=0, cap=0)

EFFECT = text("insert into effect (job, fence) values (:job, :fence)")


@pytest.fixture(autouse=True)
async def business_table(db: asyncpg.Connection) -> None:
    await db.execute("create table effect (job uuid not null, fence integer not null)")


@pytest.fixture
def outbox(sessions: async_sessionmaker[AsyncSession]) -> Outbox:
    return Outbox(sessions=sessions)


async def effects(db: asyncpg.Connection) -> int:
    return int(await db.fetchval("select count(*) from effect"))


async def write(session: AsyncSession, ctx: JobContext) -> None:
    await session.execute(EFFECT, {"job": ctx.id, "fence": ctx.fence})


async def test_everything_is_written_by_one_transaction(
    engine: AsyncEngine, database_url: str, db: asyncpg.Connection, outbox: Outbox
) -> None:
    @outbox.task(queue="nobody's")
    async def next_step(n: int) -> None: ...

    @outbox.task()
    async def step(n: int, *, session: AsyncSession = INJECTED, ctx: JobContext = INJECTED) -> dict[str, int]:
        await write(session, ctx)
        next_step.enqueue(session, n + 1)
        ctx.progress(1, 1)
        return {"n": n}

    id = await plant(engine, task="step", payload={"n": 1})
    async with working(outbox, database_url):
        await in_state(engine, id, State.SUCCEEDED)
    transactions = await db.fetch(
        """
        select xmin::text, 'effect' from effect
        union all select xmin::text, 'settled' from outbox.finished_job
        union all select xmin::text, 'enqueued' from outbox.live_job
        """
    )
    assert len(transactions) == 3
    assert len({row["xmin"] for row in transactions}) == 1
    job = await read(engine, id)
    assert (job.result, job.attempt, job.fence, job.errors) == ({"n": 1}, 1, 1, [])
    assert job.progress == {"done": 1, "total": 1, "message": None}


@pytest.mark.parametrize("end", ["raise", "snooze", "cancel", "constraint"])
async def test_whatever_is_no_success_leaves_nothing(
    engine: AsyncEngine, database_url: str, db: asyncpg.Connection, outbox: Outbox, end: str
) -> None:
    @outbox.task()
    async def other() -> None: ...

    @outbox.task(retry=ONCE)
    async def step(*, session: AsyncSession = INJECTED, ctx: JobContext = INJECTED) -> Snooze | Cancel | None:
        await write(session, ctx)
        other.enqueue(session)
        await session.flush()
        match end:
            case "raise":
                raise ValueError("no")
            case "constraint":
                await session.execute(text("insert into effect (job, fence) values (null, 1)"))
        return Snooze(3600) if end == "snooze" else Cancel("not wanted")

    id = await plant(engine, task="step")
    async with working(outbox, database_url):
        state = {"snooze": State.PENDING, "cancel": State.CANCELLED}.get(end, State.FAILED)

        async def over() -> bool:
            job = await read(engine, id)
            return job.state is state and job.fence == 1

        await eventually(over)
    assert await effects(db) == 0
    assert await factories.count(engine) == 1


async def test_an_attempt_that_failed_does_not_spoil_the_next(
    engine: AsyncEngine, database_url: str, db: asyncpg.Connection, outbox: Outbox
) -> None:
    @outbox.task(retry=TWICE)
    async def step(*, session: AsyncSession = INJECTED, ctx: JobContext = INJECTED) -> None:
        await write(session, ctx)
        if ctx.attempt == 1:
            await session.execute(text("select 1 / 0"))

    id = await plant(engine, task="step")
    async with working(outbox, database_url):
        await in_state(engine, id, State.SUCCEEDED)
    assert await db.fetchval("select fence from effect") == 2
    assert await effects(db) == 1


async def test_a_stale_fence_aborts_all_of_it(
    engine: AsyncEngine, database_url: str, db: asyncpg.Connection, outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    started, go = asyncio.Event(), asyncio.Event()

    @outbox.task()
    async def step(*, session: AsyncSession = INJECTED, ctx: JobContext = INJECTED) -> str:
        await write(session, ctx)
        started.set()
        await go.wait()
        return "mine"

    id = await plant(engine, task="step")
    async with working(outbox, database_url, lease=3600.0):  # so that no heartbeat finds out before the commit does
        await started.wait()
        await db.execute("update outbox.live_job set fence = fence + 1, worker_id = gen_random_uuid()")
        before = await read(engine, id)
        go.set()
        await until(lambda: "lease_lost" in caplog.text)
    assert await effects(db) == 0
    assert await read(engine, id) == before


async def test_a_commit_of_the_handlers_own_is_refused(
    engine: AsyncEngine, database_url: str, db: asyncpg.Connection, outbox: Outbox
) -> None:
    @outbox.task(retry=ONCE)
    async def step(*, session: AsyncSession = INJECTED, ctx: JobContext = INJECTED) -> None:
        await write(session, ctx)
        await session.commit()

    id = await plant(engine, task="step")
    async with working(outbox, database_url):
        await in_state(engine, id, State.FAILED)
    [error] = (await read(engine, id)).errors
    assert error["type"] == "outbox.errors.CommitRefused"
    assert "remove commit()" in error["message"]
    assert await effects(db) == 0


async def test_savepoints_and_rollbacks_are_the_handlers_own(
    engine: AsyncEngine, database_url: str, db: asyncpg.Connection, outbox: Outbox
) -> None:
    @outbox.task(retry=ONCE)
    async def step(*, session: AsyncSession = INJECTED, ctx: JobContext = INJECTED) -> None:
        await write(session, ctx)
        await session.rollback()
        async with session.begin_nested():
            await write(session, ctx)
        with pytest.raises(IntegrityError):
            async with session.begin_nested():
                await session.execute(text("insert into effect (job, fence) values (null, 1)"))

    id = await plant(engine, task="step")
    async with working(outbox, database_url):
        await in_state(engine, id, State.SUCCEEDED)
    assert await effects(db) == 1


async def test_a_handler_that_wrote_nothing_is_settled_too(
    engine: AsyncEngine, database_url: str, outbox: Outbox
) -> None:
    @outbox.task()
    async def step(*, session: AsyncSession = INJECTED) -> int:
        return 7

    id = await plant(engine, task="step")
    async with working(outbox, database_url):
        await in_state(engine, id, State.SUCCEEDED)
    assert (await read(engine, id)).result == 7


async def test_a_result_that_cannot_be_stored_is_said_and_the_work_is_kept(
    engine: AsyncEngine, database_url: str, db: asyncpg.Connection, outbox: Outbox
) -> None:
    @outbox.task()
    async def step(*, session: AsyncSession = INJECTED, ctx: JobContext = INJECTED) -> Any:
        await write(session, ctx)
        return "x" * 300_000

    id = await plant(engine, task="step")
    async with working(outbox, database_url):
        await in_state(engine, id, State.SUCCEEDED)
    job = await read(engine, id)
    assert job.result is None
    assert [error["type"] for error in job.errors] == ["outbox.errors.ResultNotStored"]
    assert await effects(db) == 1


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_commit_whose_answer_is_lost_is_never_done_twice(
    engine: AsyncEngine, database_url: str, db: asyncpg.Connection, when: str
) -> None:
    """The connection dies around the first COMMIT. Nobody can tell on which side of it; the fence can."""
    lost: list[bool] = []

    class Unlucky(Session):
        def commit(self) -> None:
            if not lost:
                lost.append(True)
                if when == "after":
                    super().commit()
                raise ConnectionResetError("the server closed the connection")
            super().commit()

    outbox = Outbox(sessions=async_sessionmaker(engine, sync_session_class=Unlucky))

    @outbox.task(retry=TWICE)
    async def step(*, session: AsyncSession = INJECTED, ctx: JobContext = INJECTED) -> None:
        await write(session, ctx)

    id = await plant(engine, task="step")
    async with working(outbox, database_url):
        await in_state(engine, id, State.SUCCEEDED)
        await drained(engine)
    assert lost
    assert await effects(db) == 1
    job = await read(engine, id)
    assert (job.fence, len(job.errors)) == ((1, 0) if when == "after" else (2, 1))


async def test_a_time_limit_rolls_back(
    engine: AsyncEngine, database_url: str, db: asyncpg.Connection, outbox: Outbox
) -> None:
    @outbox.task(retry=ONCE, timeout=0.2)
    async def step(*, session: AsyncSession = INJECTED, ctx: JobContext = INJECTED) -> None:
        await write(session, ctx)
        await asyncio.Event().wait()

    id = await plant(engine, task="step")
    async with working(outbox, database_url):
        await in_state(engine, id, State.FAILED)
    assert [error["type"] for error in (await read(engine, id)).errors] == ["outbox.errors.AttemptTimeout"]
    assert await effects(db) == 0


async def test_many_jobs_at_once_have_one_effect_each(
    engine: AsyncEngine, database_url: str, db: asyncpg.Connection, outbox: Outbox
) -> None:
    @outbox.task()
    async def step(n: int, *, session: AsyncSession = INJECTED, ctx: JobContext = INJECTED) -> int:
        await write(session, ctx)
        return n

    await plant_many(engine, 300, task="step")
    async with working(outbox, database_url):
        await drained(engine)
    assert await factories.count(engine, "succeeded") == 300
    assert await db.fetchval("select count(distinct job) from effect") == await effects(db) == 300


async def test_settling_never_walks_the_table(engine: AsyncEngine, db: asyncpg.Connection) -> None:
    """The plan is made while the table is empty, and kept when it is full."""
    await db.execute("alter table outbox.live_job set (autovacuum_enabled = off)")
    await db.execute("vacuum analyze outbox.live_job")
    finish = text(sql.FINISH_HERE)
    values: dict[str, Any] = {"fence": 1, "result": None, "error": None, "progress": None, "checkpoint": None}
    read = "select seq_tup_read from pg_stat_user_tables where relid = 'outbox.live_job'::regclass"
    async with engine.connect() as connection:
        for _ in range(10):
            assert not await connection.scalar(finish, {"id": factories.new_id(), **values})
            await connection.commit()
        await plant_many(engine, 20_000, state="running")
        id = await db.fetchval("select id from outbox.live_job limit 1")
        await db.execute("select pg_stat_force_next_flush()")
        before = await db.fetchval(read)
        assert await connection.scalar(finish, {"id": id, **values})
        await connection.commit()
        await connection.execute(text("select pg_stat_force_next_flush()"))
        await connection.commit()
    assert await db.fetchval(read) == before
