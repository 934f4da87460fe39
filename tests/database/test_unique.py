"""Of the live jobs of a task one has a key: whoever races, the others learn whose it is, and nothing is spoilt."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from outbox import NewJob, Outbox, State, control, maintenance
from outbox.connection import Link
from outbox.errors import JobExists, KeyTaken
from tests import factories
from tests.factories import plant, read
from tests.waiting import eventually

outbox = Outbox()
Sessions = async_sessionmaker[AsyncSession]


@outbox.task()
async def noop(n: int = 0) -> None: ...


@outbox.task()
async def other(n: int = 0) -> None: ...


async def enqueue(sessions: Sessions, n: int = 0, **options: Any) -> NewJob:
    async with sessions.begin() as session:
        return noop.options(**{"key": "k", **options}).enqueue(session, n)


async def somebody_waits(db: asyncpg.Connection) -> bool:
    return bool(await db.fetchval("select exists (select from pg_locks where not granted)"))


async def test_the_second_finds_the_first(engine: AsyncEngine, sessions: Sessions) -> None:
    first, second = await enqueue(sessions, 1), await enqueue(sessions, 2)
    assert (first.is_new, second.is_new) == (True, False)
    assert second.id == first.id
    [job] = await factories.read_all(engine)
    assert (job.id, job.key, job.payload) == (first.id, "k", {"n": 1})


async def test_tasks_and_keys_do_not_disturb_each_other(engine: AsyncEngine, sessions: Sessions) -> None:
    async with sessions.begin() as session:
        jobs = [noop.enqueue(session), noop.enqueue(session)]
        jobs += [task.options(key=key).enqueue(session) for task in (noop, other) for key in ("a", "b")]
    assert {job.id for job in await factories.read_all(engine)} == {job.id for job in jobs}
    assert all(job.is_new for job in jobs)


@pytest.mark.parametrize("kind", ["succeeded", "failed", "cancelled"])
async def test_a_job_that_has_ended_gives_its_key_back(engine: AsyncEngine, sessions: Sessions, kind: str) -> None:
    await plant(engine, kind, key="k")
    assert (await enqueue(sessions)).is_new


@pytest.mark.parametrize("kind", ["pending", "scheduled", "retrying", "running", "expired"])
async def test_a_job_that_lives_has_its_key(engine: AsyncEngine, sessions: Sessions, kind: str) -> None:
    id = await plant(engine, kind, key="k")
    job = await enqueue(sessions)
    assert (job.id, job.is_new) == (id, False)


@pytest.mark.parametrize("period", [None, 3600.0])
async def test_of_many_at_once_one_wins_and_all_learn_whose_it_is(
    engine: AsyncEngine, sessions: Sessions, period: float | None
) -> None:
    jobs = await asyncio.gather(*(enqueue(sessions, n, unique_for=period) for n in range(12)))
    assert sum(bool(job.is_new) for job in jobs) == 1
    [row] = await factories.read_all(engine)
    assert {job.id for job in jobs} == {row.id}


@pytest.mark.parametrize("period", [None, 3600.0])
@pytest.mark.parametrize("commits", [True, False])
async def test_the_second_waits_for_the_fate_of_the_first(
    engine: AsyncEngine, sessions: Sessions, db: asyncpg.Connection, commits: bool, period: float | None
) -> None:
    async with sessions() as session:
        first = noop.options(key="k", unique_for=period).enqueue(session, 1)
        await session.flush()
        waiting = asyncio.create_task(enqueue(sessions, 2, unique_for=period))
        await eventually(lambda: somebody_waits(db))
        await (session.commit() if commits else session.rollback())
    second = await waiting
    assert second.is_new is not commits
    assert (second.id == first.id) is commits
    [job] = await factories.read_all(engine)
    assert (job.id, job.payload) == (second.id, {"n": 1 if commits else 2})


async def test_a_savepoint_that_is_rolled_back_gives_the_key_back(engine: AsyncEngine, sessions: Sessions) -> None:
    async with sessions.begin() as session:
        savepoint = await session.begin_nested()
        noop.options(key="k", unique_for=60).enqueue(session, 1)
        await session.flush()
        await savepoint.rollback()
        job = noop.options(key="k", unique_for=60).enqueue(session, 2)
    assert job.is_new
    assert [row.payload for row in await factories.read_all(engine)] == [{"n": 2}]


async def test_arguments_and_options_are_replaced_until_the_job_starts(engine: AsyncEngine, sessions: Sessions) -> None:
    first = await enqueue(sessions, 1, delay=3600, tags=["a"])
    second = await enqueue(sessions, 2, on_conflict="replace", priority=3, queue="mail", tags=["b"], max_attempts=2)
    assert (second.id, second.is_new) == (first.id, False)
    job = await read(engine, first.id)
    assert (job.payload, job.priority, job.queue, job.tags, job.max_attempts) == ({"n": 2}, 3, "mail", ["b"], 2)
    assert job.run_at < datetime.now(UTC) + timedelta(minutes=30), "the new job's run_at, which is now"
    assert await factories.count(engine) == 1


@pytest.mark.parametrize("kind", ["running", "retrying"])
async def test_nothing_is_replaced_once_the_job_has_started(engine: AsyncEngine, sessions: Sessions, kind: str) -> None:
    id = await plant(engine, kind, key="k", payload={"n": 1})
    before = await read(engine, id)
    job = await enqueue(sessions, 2, on_conflict="replace")
    assert (job.id, job.is_new) == (id, False)
    assert await read(engine, id) == before


async def test_a_rejected_job_spoils_nothing(engine: AsyncEngine, sessions: Sessions) -> None:
    first = await enqueue(sessions, 1)
    async with sessions.begin() as session:
        await session.execute(text("create table business (n integer)"))
        rejected = noop.options(key="k", on_conflict="reject").enqueue(session, 2)
        beside = noop.enqueue(session, 3)
        with pytest.raises(JobExists, match="has a job with the key 'k' already") as caught:
            await session.flush()
        await session.execute(text("insert into business values (1)"))
        after = noop.enqueue(session, 4)
    assert caught.value.existing == first.id == rejected.id
    assert caught.value.rejected == (rejected,)
    assert {job.id for job in await factories.read_all(engine)} == {first.id, beside.id, after.id}


async def test_the_same_key_twice_in_one_flush(engine: AsyncEngine, sessions: Sessions) -> None:
    async with sessions.begin() as session:
        kept = [noop.options(key="keep").enqueue(session, n) for n in range(3)]
        replaced = [noop.options(key="replace", on_conflict="replace").enqueue(session, n) for n in range(3)]
    assert [job.is_new for job in kept] == [job.is_new for job in replaced] == [True, False, False]
    assert len({job.id for job in kept}) == len({job.id for job in replaced}) == 1
    payloads = {job.key: job.payload for job in await factories.read_all(engine)}
    assert payloads == {"keep": {"n": 0}, "replace": {"n": 2}}


async def test_in_bulk_too(engine: AsyncEngine, sessions: Sessions) -> None:
    there = await plant(engine, key="7")
    jobs = [noop.options(key=str(n % 500), on_conflict="keep").job(n) for n in range(1000)]
    async with sessions.begin() as session:
        await outbox.enqueue_many(session, jobs)
    assert await factories.count(engine) == 500
    assert sum(bool(job.is_new) for job in jobs) == 499
    assert jobs[7].id == jobs[507].id == there
    assert {job.id for job in jobs} == {job.id for job in await factories.read_all(engine)}


# For a period.


async def test_a_period_outlives_its_job(engine: AsyncEngine, sessions: Sessions, db: asyncpg.Connection) -> None:
    first = await enqueue(sessions, 1, unique_for=3600)
    async with sessions.begin() as session:
        await control.cancel(session, first.id)
    second = await enqueue(sessions, 2, unique_for=3600)
    assert (second.id, second.is_new) == (first.id, False)
    await db.execute("update outbox.held_key set until = now() - interval '1 second'")
    third = await enqueue(sessions, 3, unique_for=3600)
    assert third.is_new
    assert (await enqueue(sessions, 4, unique_for=3600)).id == third.id


async def test_a_job_that_outlives_its_period_has_its_key(
    engine: AsyncEngine, sessions: Sessions, db: asyncpg.Connection
) -> None:
    first = await enqueue(sessions, 1, unique_for=3600)
    await db.execute("update outbox.held_key set until = now() - interval '1 second'")
    second = await enqueue(sessions, 2, unique_for=3600)
    assert (second.id, second.is_new) == (first.id, False)
    assert await db.fetchval("select job_id from outbox.held_key") == first.id
    assert await factories.count(engine) == 1


async def test_keys_whose_period_is_over_are_pruned(sessions: Sessions, db: asyncpg.Connection, link: Link) -> None:
    await enqueue(sessions, key="old", unique_for=1)
    await enqueue(sessions, key="new", unique_for=3600)
    await db.execute("update outbox.held_key set until = now() - interval '1 second' where key = 'old'")
    await maintenance.keep_partitions(link, 14)
    assert [row["key"] for row in await db.fetch("select key from outbox.held_key")] == ["new"]


# What people do.


async def test_a_job_is_not_requeued_beside_another_one_with_its_key(
    engine: AsyncEngine, session: AsyncSession
) -> None:
    failed, live = await plant(engine, "failed", key="k"), await plant(engine, key="k")
    with pytest.raises(KeyTaken) as refused:
        await control.requeue(session, failed)
    assert refused.value.existing == live
    await session.commit()
    assert (await read(engine, failed)).state is State.FAILED
    await control.cancel(session, live)
    assert (await control.requeue(session, failed)).state is State.PENDING


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"key": ""}, "key: must be 1 to 200"),
        ({"key": "x" * 201}, "key: must be 1 to 200"),
        ({"key": "a\0"}, "key: must be 1 to 200"),
        ({"unique_for": 60}, "give key= too"),
        ({"on_conflict": "reject"}, "give key= too"),
        ({"key": "k", "on_conflict": "drop"}, "must be one of keep, replace, reject"),
        ({"key": "k", "on_conflict": "replace", "unique_for": 60}, "not both"),
        ({"key": "k", "unique_for": -1}, "at least 0"),
    ],
)
def test_options_that_make_no_sense_are_refused_at_once(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        noop.options(**options)


def test_a_handle_says_that_it_does_not_know_yet() -> None:
    job = noop.options(key="k").job()
    assert job.is_new is None
    assert isinstance(job.id, UUID)
