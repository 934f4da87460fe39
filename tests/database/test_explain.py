"""The explanation says of a job that it is its turn exactly when a claim takes it, and otherwise why not."""

from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from outbox import claim, limit, queue
from outbox.connection import Link
from outbox.errors import JobNotFound
from outbox.explain import Explanation, explain
from outbox.limit import Limit
from outbox.presence import Presence
from tests import factories
from tests.factories import ago, new_id, plant, plant_many

Sessions = async_sessionmaker[AsyncSession]


@pytest.fixture
async def served(link: Link) -> None:
    """A worker that serves the queue and knows the task."""
    await present(link)


async def present(link: Link, queues: Any = None, tasks: Any = None) -> None:
    known = Presence(id=new_id(), queues=queues or {"default": 10}, tasks=tasks or {"noop": 1}, lease=30.0)
    await known.appear(link)


async def explained(sessions: Sessions, id: UUID, **options: Any) -> Explanation:
    async with sessions() as session:
        return await explain(session, id, **options)


async def codes(sessions: Sessions, id: UUID) -> list[str]:
    return [reason.code for reason in (await explained(sessions, id)).reasons]


@pytest.mark.usefixtures("served")
async def test_the_next_job_is_next(engine: AsyncEngine, sessions: Sessions) -> None:
    found = await explained(sessions, await plant(engine))
    assert found.ready
    assert (found.ahead, [reason.code for reason in found.reasons]) == (0, ["in_line"])


@pytest.mark.usefixtures("served")
async def test_the_place_in_line_counts_what_is_claimed_before_it(engine: AsyncEngine, sessions: Sessions) -> None:
    await plant(engine, run_at=ago(10))
    await plant(engine, priority=3)
    await plant(engine, queue="other", run_at=ago(10))
    id = await plant(engine, run_at=ago(5))
    await plant(engine)
    await plant(engine, priority=0, run_at=ago(10))
    found = await explained(sessions, id)
    assert found.ahead == 2
    assert "2 jobs" in found.reasons[0].text


@pytest.mark.usefixtures("served")
async def test_the_time_until_its_turn_follows_from_the_pace(
    engine: AsyncEngine, sessions: Sessions, db: asyncpg.Connection
) -> None:
    await plant_many(engine, 100)
    id = await plant(engine)
    assert (await explained(sessions, id)).seconds is None
    await db.execute(
        "insert into outbox.statistic (seconds, starts_at, queue, task, outcome, count, waits, runs) "
        "values (60, date_trunc('minute', now()), 'default', 'noop', 'succeeded', 3000, '{}', '{}')"
    )
    assert (await explained(sessions, id)).seconds == pytest.approx(10)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("running", "running"),
        ("succeeded", "ended"),
        ("failed", "ended"),
        ("scheduled", "scheduled"),
        ("retrying", "scheduled"),
    ],
)
@pytest.mark.usefixtures("served")
async def test_what_does_not_wait_or_is_not_due(engine: AsyncEngine, sessions: Sessions, kind: str, code: str) -> None:
    assert await codes(sessions, await plant(engine, kind)) == [code]


@pytest.mark.usefixtures("served")
async def test_a_paused_queue(engine: AsyncEngine, sessions: Sessions) -> None:
    async with sessions.begin() as session:
        await queue.pause(session, "default")
    assert await codes(sessions, await plant(engine)) == ["queue_paused"]
    assert await codes(sessions, await plant(engine, "scheduled")) == ["scheduled", "queue_paused"]


@pytest.mark.usefixtures("served")
async def test_another_job_of_its_group(engine: AsyncEngine, sessions: Sessions, link: Link) -> None:
    first = await plant(engine, group_key="g", blocked="new")
    second = await plant(engine, group_key="g", blocked="new")
    [reason] = (await explained(sessions, second)).reasons
    assert (reason.code, list(reason.jobs)) == ("behind_in_group", [first])
    [taken] = await claim.take(link, {"default": 10}, {"noop": 1}, factories.WORKER, 30)
    assert taken.id == first
    [reason] = (await explained(sessions, second)).reasons
    assert (reason.code, list(reason.jobs)) == ("behind_in_group", [first])


@pytest.mark.usefixtures("served")
async def test_jobs_that_it_comes_after(engine: AsyncEngine, sessions: Sessions, db: asyncpg.Connection) -> None:
    first, second = await plant(engine, followed=True), await plant(engine, followed=True)
    id = await plant(engine, blocked="after")
    for n, each in enumerate((first, second)):
        await db.execute(
            "insert into outbox.dependency (job_id, after_id, position, anyway) values ($1, $2, $3, false)", id, each, n
        )
    [reason] = (await explained(sessions, id)).reasons
    assert (reason.code, list(reason.jobs)) == ("after_others", [first, second])


@pytest.mark.usefixtures("served")
async def test_a_limit_that_is_reached(engine: AsyncEngine, sessions: Sessions, link: Link) -> None:
    async with sessions.begin() as session:
        await limit.put(session, "task", "noop", Limit(concurrency=1))
    running, id = await plant(engine, limited=True), await plant(engine, limited=True)
    assert await codes(sessions, id) == ["in_line"]
    [taken] = await claim.take(link, {"default": 10}, {"noop": 1}, factories.WORKER, 30)
    assert taken.id == running
    found = await explained(sessions, id)
    assert [reason.code for reason in found.reasons] == ["limit_reached"]
    assert "1 at once" in found.reasons[0].text
    # Nothing stays locked that was looked at.
    async with sessions() as session:
        await explain(session, id)
        assert await claim.take(link, {"default": 10}, {"noop": 1}, factories.WORKER, 30) == []


@pytest.mark.usefixtures("served")
async def test_a_rate_says_when(engine: AsyncEngine, sessions: Sessions, link: Link) -> None:
    async with sessions.begin() as session:
        await limit.put(session, "queue", "default", Limit(rate=1, per=timedelta(hours=1)))
    _, id = await plant(engine, limited=True), await plant(engine, limited=True)
    assert len(await claim.take(link, {"default": 10}, {"noop": 1}, factories.WORKER, 30)) == 1
    found = await explained(sessions, id)
    assert [reason.code for reason in found.reasons] == ["limit_reached"]
    assert "next job start in" in found.reasons[0].text


async def test_no_worker_that_would_take_it(engine: AsyncEngine, sessions: Sessions, link: Link) -> None:
    id = await plant(engine, version=2)
    assert await codes(sessions, id) == ["no_worker_for_queue"]
    await present(link, queues={"other": 1})
    found = await explained(sessions, id)
    assert [reason.code for reason in found.reasons] == ["no_worker_for_queue"]
    assert "1 are up, none of them for it" in found.reasons[0].text
    await present(link, tasks={"another": 1})
    assert await codes(sessions, id) == ["no_worker_for_task"]
    await present(link)
    assert await codes(sessions, id) == ["no_worker_for_version"]
    await present(link, tasks={"noop": 2})
    assert await codes(sessions, id) == ["in_line"]


async def test_a_worker_that_is_gone_or_leaving_does_not_count(
    engine: AsyncEngine, sessions: Sessions, link: Link, db: asyncpg.Connection
) -> None:
    id = await plant(engine)
    await present(link)
    await db.execute("update outbox.worker set seen_at = seen_at - interval '31 seconds'")
    assert await codes(sessions, id) == ["no_worker_for_queue"]
    await db.execute("update outbox.worker set seen_at = clock_timestamp(), stopping_at = clock_timestamp()")
    assert await codes(sessions, id) == ["no_worker_for_queue"]


async def test_another_tenants_job_is_not_there(engine: AsyncEngine, sessions: Sessions) -> None:
    id = await plant(engine, tenant="a")
    assert (await explained(sessions, id, tenant="a")).job.id == id
    with pytest.raises(JobNotFound):
        await explained(sessions, id, tenant="b")
    with pytest.raises(JobNotFound):
        await explained(sessions, new_id())


jobs = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["pending", "scheduled", "retrying", "running", "succeeded"]),
        "queue": st.sampled_from(["default", "paused", "unserved"]),
        "task": st.sampled_from(["noop", "unknown"]),
        "version": st.sampled_from([1, 2]),
        "limited": st.booleans(),
        "blocked": st.sampled_from([None, None, "after"]),
        "lost": st.integers(0, 2),
    }
)


@given(planted=st.lists(jobs, min_size=1, max_size=6))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_it_is_its_turn_exactly_when_a_claim_would_take_it(
    engine: AsyncEngine, sessions: Sessions, link: Link, db: asyncpg.Connection, planted: list[dict[str, Any]]
) -> None:
    """Whatever is done to the claim, the explanation follows, or this fails."""
    await db.execute("truncate outbox.live_job, outbox.finished_job, outbox.worker, outbox.queue, outbox.job_limit")
    async with sessions.begin() as session:
        await queue.pause(session, "paused")
        await limit.put(session, "task", "noop", Limit(concurrency=100))
    await present(link, queues={"default": 10, "paused": 10})
    ids = []
    for each in planted:
        columns = dict(each)
        kind = columns.pop("kind")
        if kind not in ("pending", "scheduled", "retrying"):
            columns["blocked"] = None
        ids.append(await plant(engine, kind, **columns))
    explanations = {id: await explained(sessions, id) for id in ids}
    wanted = {"default": 10, "paused": 10}
    taken: set[UUID] = set()
    for _ in range(10):  # suspects are taken one at a time
        came = await claim.take(link, wanted, {"noop": 1}, factories.WORKER, 30)
        taken |= {each.id for each in came}
    assert {id for id, found in explanations.items() if found.ready} == taken
