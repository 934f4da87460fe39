"""What a handler keeps is there for the next attempt, and written with its transaction if it says so."""

import asyncio
from typing import Any

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from outbox import INJECTED, JobContext, Outbox, Retry, Snooze, State, control
from outbox.connection import Link
from outbox.context import JobContext as Context
from outbox.errors import LeaseLost, PayloadInvalid
from tests import factories
from tests.database.workers import in_state, working
from tests.factories import plant, read
from tests.waiting import eventually

AT_ONCE = Retry(max_attempts=3, base=0, cap=0)


@pytest.mark.parametrize("end", ["raise", "snooze"])
async def test_the_next_attempt_finds_what_the_last_one_kept(engine: AsyncEngine, database_url: str, end: str) -> None:
    outbox, found = Outbox(), list[Any]()

    @outbox.task(retry=AT_ONCE)
    async def walk(*, ctx: JobContext = INJECTED) -> Snooze | None:
        found.append(ctx.checkpoint)
        if len(found) < 3:
            ctx.keep({"step": len(found)})
            assert ctx.checkpoint == {"step": len(found)}
            if end == "snooze":
                return Snooze(0)
            raise ValueError("not yet")
        return None

    id = await plant(engine, task="walk")
    async with working(outbox, database_url):
        await in_state(engine, id, State.SUCCEEDED)
    assert found == [None, {"step": 1}, {"step": 2}]
    assert (await read(engine, id)).checkpoint == {"step": 2}


async def test_a_checkpoint_outlives_its_worker_and_a_requeue(engine: AsyncEngine, database_url: str) -> None:
    """A rescued job, and one that a person requeues, begin where the last attempt was."""
    outbox, found = Outbox(), list[Any]()

    @outbox.task()
    async def walk(*, ctx: JobContext = INJECTED) -> None:
        found.append(ctx.checkpoint)

    rescued = await plant(engine, "expired", task="walk", checkpoint=[1, 2])
    requeued = await plant(engine, "failed", task="walk", checkpoint="three")
    async with engine.begin() as connection:
        await control.requeue(connection, requeued)
    async with working(outbox, database_url, lease=1.0):
        await in_state(engine, rescued, State.SUCCEEDED)
        await in_state(engine, requeued, State.SUCCEEDED)
    assert sorted(found, key=str) == [[1, 2], "three"]


async def test_it_is_written_while_the_handler_runs(engine: AsyncEngine, database_url: str) -> None:
    outbox, go = Outbox(), asyncio.Event()

    @outbox.task()
    async def walk(*, ctx: JobContext = INJECTED) -> None:
        ctx.keep(7)
        await go.wait()

    id = await plant(engine, task="walk")
    async with working(outbox, database_url, lease=1.0):

        async def written() -> bool:
            job = await read(engine, id)
            return job.state is State.RUNNING and job.checkpoint == 7

        await eventually(written)
        go.set()


async def test_a_checkpoint_commits_with_the_work_it_speaks_of(
    engine: AsyncEngine, database_url: str, sessions: async_sessionmaker[AsyncSession], db: asyncpg.Connection
) -> None:
    """Each batch exactly once, although every attempt dies in the middle of one."""
    outbox = Outbox()
    await db.execute("create table batch (n integer)")

    @outbox.task(retry=Retry(max_attempts=10, base=0, cap=0))
    async def load(*, ctx: JobContext = INJECTED) -> None:
        start = ctx.checkpoint or 0
        for n in range(start, 5):
            async with sessions.begin() as session:
                await session.execute(text("insert into batch values (:n)"), {"n": n})
                await ctx.keep_in(session, n + 1)
                if n == start + 1:
                    raise ValueError("in the middle")

    id = await plant(engine, task="load")
    async with working(outbox, database_url):
        await in_state(engine, id, State.SUCCEEDED)
    assert [row["n"] for row in await db.fetch("select n from batch order by n")] == [0, 1, 2, 3, 4]
    assert (await read(engine, id)).attempt == 5


async def test_a_stale_claim_cannot_keep_anything(engine: AsyncEngine, session: AsyncSession) -> None:
    id = await plant(engine, "running", fence=2, checkpoint=1)
    with pytest.raises(LeaseLost):
        await Context(factories.held(id, fence=1)).keep_in(session, 2)
    await session.rollback()
    assert (await read(engine, id)).checkpoint == 1


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"a": ["\0"]}, r"\$\.a\[0\]: contains a NUL"),
        ("\ud800", "lone surrogate"),
        (float("nan"), "NaN"),
        (2**64, "64 bit"),
        ("x" * 300_000, "limit of a checkpoint"),
        (object(), "cannot be written as JSON"),
    ],
    ids=lambda each: str(each)[:12].encode("ascii", "replace").decode(),
)
async def test_what_cannot_be_stored_is_refused_at_once(link: Link, value: Any, said: str) -> None:
    with pytest.raises(PayloadInvalid, match=said):
        Context(factories.held(factories.new_id())).keep(value)
