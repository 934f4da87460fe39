"""A deploy in any order: older payloads are lifted, newer ones wait for the worker that can read them."""

from functools import partial
from typing import Any

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from outbox import Limit, Outbox, Retry, State, schedule, ticks
from outbox import claim as claims
from outbox.batch import Batch, BatchSummary
from outbox.connection import Link
from outbox.errors import DeclarationError
from outbox.outcome import Finished
from outbox.schedule import Schedule
from outbox.task import Task
from outbox.turns import Turns
from outbox.worker import Worker
from tests import factories, isolated
from tests.database.workers import drained, in_state, working
from tests.factories import plant, read
from tests.waiting import eventually

Sessions = async_sessionmaker[AsyncSession]


def lift(version: int, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"to": f"{arguments['to']}+{version}"}


def release(version: int, **options: Any) -> tuple[Outbox, Task[..., Any]]:
    """The code as it was, is, or will be."""
    outbox = Outbox()

    @outbox.task(version=version, **options)
    async def send(to: str) -> str:
        return f"release {version}: {to}"

    for older in range(1, version):
        send.upcast(older)(partial(lift, older))
    return outbox, send


async def take(link: Link, version: int, **options: Any) -> list[int]:
    taken = await claims.take(
        link, {"default": 10}, {"send": 8}, factories.WORKER, 30, versions={"send": version}, **options
    )
    return [claim.version for claim in taken]


async def test_a_claim_takes_no_newer_version(engine: AsyncEngine, link: Link) -> None:
    for version in (3, 2, 1, 2, 3):
        await plant(engine, task="send", version=version)
    assert sorted(await take(link, 2)) == [1, 2, 2]
    assert await take(link, 2) == []
    assert await take(link, 3) == [3, 3]


async def test_nor_do_the_turns_of_limited_jobs(engine: AsyncEngine, link: Link) -> None:
    for version in (3, 2, 1):
        await plant(engine, task="send", version=version, limited=True, limit_key="a")
    turns = Turns()
    assert sorted(await take(link, 2, turns=turns)) == [1, 2]
    assert await take(link, 2, turns=turns) == []
    assert await take(link, 3, turns=turns) == [3]


async def test_a_newer_version_takes_no_share_from_the_turns_of_others(engine: AsyncEngine, link: Link) -> None:
    for key, version in (("a", 2), ("b", 1)):
        await plant(engine, task="send", version=version, limited=True, limit_key=key)
    assert await take(link, 1, turns=Turns(), free={"default": 1}) == [1]


async def test_a_newer_version_waits_untouched_until_its_worker_comes(
    engine: AsyncEngine, sessions: Sessions, database_url: str
) -> None:
    old, send_1 = release(1)
    new, send_2 = release(2)
    async with sessions.begin() as session:
        newer, older = send_2.enqueue(session, "ada"), send_1.enqueue(session, "bob")
    async with working(old, database_url):
        await in_state(engine, older.id, State.SUCCEEDED)
    job = await read(engine, newer.id)
    assert (job.state, job.attempt, job.fence, job.errors, job.version) == (State.PENDING, 0, 0, [], 2)
    async with working(new, database_url):
        await drained(engine)
    assert (await read(engine, newer.id)).result == "release 2: ada"
    assert (await read(engine, older.id)).result == "release 1: bob"


async def test_older_versions_are_lifted_step_by_step(
    engine: AsyncEngine, sessions: Sessions, database_url: str
) -> None:
    async with sessions.begin() as session:
        jobs = [release(version)[1].enqueue(session, "ada") for version in (1, 2, 3)]
    async with working(release(3)[0], database_url):
        await drained(engine)
    results = [(await read(engine, job.id)).result for job in jobs]
    assert results == ["release 3: ada+1+2", "release 3: ada+2", "release 3: ada"]
    assert [(await read(engine, job.id)).version for job in jobs] == [1, 2, 3], "a row keeps what it says"


async def test_a_limited_task_is_deployed_as_any_other(
    engine: AsyncEngine, sessions: Sessions, database_url: str
) -> None:
    old, send_1 = release(1, limit=Limit(concurrency=2))
    _, send_2 = release(2, limit=Limit(concurrency=2))
    async with working(old, database_url):
        async with sessions.begin() as session:
            newer, older = send_2.enqueue(session, "ada"), send_1.enqueue(session, "bob")
        await in_state(engine, older.id, State.SUCCEEDED)
    assert (await read(engine, newer.id)).fence == 0


async def test_an_upcaster_that_fails_is_retried_by_the_policy(engine: AsyncEngine, database_url: str) -> None:
    outbox = Outbox()

    @outbox.task(version=2, retry=Retry(max_attempts=2, base=0.01, cap=0.01))
    async def send(to: str) -> None: ...

    @send.upcast(1)
    def _(arguments: dict[str, Any]) -> dict[str, Any]:
        return {"to": arguments["recipient"]}

    id = await plant(engine, task="send", payload={"email": "ada"})
    async with working(outbox, database_url):
        await eventually(lambda: _failed(engine, id))
    job = await read(engine, id)
    assert job.attempt == 2
    assert job.errors[-1]["message"] == "arguments of task 'send': $: upcast(1) raised KeyError"


async def test_what_replaces_a_job_brings_its_version(engine: AsyncEngine, sessions: Sessions) -> None:
    for version in (1, 2):
        async with sessions.begin() as session:
            release(version)[1].options(key="k", on_conflict="replace").enqueue(session, "ada")
    [job] = await factories.read_all(engine)
    assert job.version == 2


async def test_thousands_have_their_version_too(engine: AsyncEngine, sessions: Sessions) -> None:
    outbox, send = release(2)
    async with sessions.begin() as session:
        await outbox.enqueue_many(session, [send.job("ada") for _ in range(3)])
    assert {job.version for job in await factories.read_all(engine)} == {2}


async def test_an_isolated_task_is_given_what_was_lifted(engine: AsyncEngine, database_url: str) -> None:
    id = await plant(engine, task="uses_secret", payload={"password": "ada"})
    async with working(isolated.sealed, database_url):
        await drained(engine)
    assert (await read(engine, id)).state is State.SUCCEEDED


async def test_what_a_schedule_enqueues_has_its_version(
    engine: AsyncEngine, sessions: Sessions, link: Link, db: asyncpg.Connection
) -> None:
    outbox, send = release(2)
    outbox.cron("* * * * *", name="declared", arguments={"to": "ada"})(send)
    await ticks.declare(link, ["send"], outbox.schedules)
    async with sessions.begin() as session:
        await schedule.put(session, Schedule(name="put", job=send.job("ada"), cron="* * * * *"))
        await schedule.fire(session, "put")
        await schedule.fire(session, "declared")
    await db.execute("update outbox.schedule set next_at = date_trunc('minute', clock_timestamp())")
    assert await ticks.fire_due(link, ["send"]) == 2
    assert [job.version for job in await factories.read_all(engine)] == [2] * 4


async def test_a_newer_release_gives_its_schedules_their_new_version(
    sessions: Sessions, link: Link, db: asyncpg.Connection
) -> None:
    for version in (1, 2):
        outbox, send = release(version)
        outbox.cron("* * * * *", name="declared", arguments={"to": "ada"})(send)
        await ticks.declare(link, ["send"], outbox.schedules)
        async with sessions.begin() as session:
            await schedule.put(session, Schedule(name="put", job=send.job("ada"), cron="* * * * *"))
    assert [row["version"] for row in await db.fetch("select version from outbox.schedule")] == [2, 2]


async def test_what_a_batch_calls_back_has_its_version(engine: AsyncEngine, sessions: Sessions, link: Link) -> None:
    outbox = Outbox()

    @outbox.task(version=3)
    async def done(batch: BatchSummary) -> None: ...

    async with sessions.begin() as session:
        Batch("b", [release(1)[1].job("ada")], on_complete=done).enqueue(session)
    taken = await claims.take(link, {"default": 1}, {"send": 8}, factories.WORKER, 30)
    await claims.settle(link, [(taken[0], Finished(State.SUCCEEDED))])
    assert {job.task: job.version for job in await factories.read_all(engine)} == {"send": 1, "done": 3}


def test_a_worker_does_not_start_while_an_upcaster_is_missing() -> None:
    outbox = Outbox()

    @outbox.task(version=2)
    async def send(to: str) -> None: ...

    with pytest.raises(DeclarationError, match=r"no upcast\(1\)"):
        Worker(outbox, "postgresql://nowhere")


async def _failed(engine: AsyncEngine, id: Any) -> bool:
    return (await read(engine, id)).state is State.FAILED
