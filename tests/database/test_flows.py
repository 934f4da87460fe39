"""Jobs that come after others run when those have succeeded, see their results, and end with those that have not."""

import asyncio
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from outbox import INJECTED, JobContext, NewJob, Outbox, Retry, State, control, maintenance, status
from outbox import claim as claims
from outbox.connection import Link
from outbox.context import Claim
from outbox.errors import EnqueueFailed
from outbox.job import MAX_LOST
from outbox.outcome import Finished, Outcome, Postponed
from tests import factories
from tests.database.workers import drained, in_state, working
from tests.factories import WORKER, read

Sessions = async_sessionmaker[AsyncSession]

outbox = Outbox()
SUCCEEDED = Finished(State.SUCCEEDED)


@outbox.task()
async def noop(n: int = 0) -> None: ...


async def take(link: Link) -> list[Claim]:
    return await claims.take(link, {"default": 20}, {"noop": 8}, WORKER, 30.0)


async def end(link: Link, claim: Claim, outcome: Outcome = SUCCEEDED) -> None:
    assert await claims.settle(link, [(claim, outcome)]) == []


async def chain(sessions: Sessions, length: int, **options: Any) -> list[UUID]:
    jobs: list[NewJob] = []
    async with sessions.begin() as session:
        for n in range(length):
            given = {"after": jobs[-1:], **(options if jobs else {})}
            jobs.append(noop.options(**given).enqueue(session, n))
    return [job.id for job in jobs]


async def states(engine: AsyncEngine, ids: list[UUID]) -> list[State]:
    return [(await read(engine, id)).state for id in ids]


async def test_a_chain_runs_one_after_the_other(engine: AsyncEngine, sessions: Sessions, link: Link) -> None:
    ids = await chain(sessions, 4)
    for n, id in enumerate(ids):
        [claim] = await take(link)
        assert claim.id == id
        assert claim.lets_others_run == (n < 3)
        assert await take(link) == []
        await end(link, claim)
    assert await take(link) == []
    assert set(await states(engine, ids)) == {State.SUCCEEDED}


@pytest.mark.parametrize("together", [True, False], ids=["one flush", "several"])
async def test_a_fan_in_waits_for_all(engine: AsyncEngine, sessions: Sessions, link: Link, together: bool) -> None:
    async with sessions.begin() as session:
        before = [noop.enqueue(session, n) for n in range(3)]
        if not together:
            await session.flush()
        last = noop.options(after=before).enqueue(session)
    taken = await take(link)
    assert {claim.id for claim in taken} == {job.id for job in before}
    await end(link, taken[0])
    job = await read(engine, last.id)
    assert job.blocked == "after"
    async with engine.connect() as connection:
        assert await status.blocker(connection, job) in {claim.id for claim in taken[1:]}
    assert await claims.settle(link, [(claim, SUCCEEDED) for claim in taken[1:]]) == []
    assert [claim.id for claim in await take(link)] == [last.id]


async def test_the_last_two_of_a_fan_in_may_end_at_the_same_moment(
    engine: AsyncEngine, sessions: Sessions, link: Link, other_link: Link
) -> None:
    for _ in range(30):
        async with sessions.begin() as session:
            before = [noop.enqueue(session, n) for n in range(2)]
            last = noop.options(after=before).enqueue(session)
        first, second = await take(link)
        await asyncio.gather(end(link, first), end(other_link, second))
        [claim] = await take(link)
        assert claim.id == last.id
        await end(link, claim)


async def test_the_second_of_two_waits_for_the_first_to_commit_and_then_opens_what_waits_for_both(
    sessions: Sessions, link: Link, other_link: Link, db: asyncpg.Connection
) -> None:
    async with sessions.begin() as session:
        before = [noop.enqueue(session, n) for n in range(2)]
        last = noop.options(after=before).enqueue(session)
    first, second = await take(link)
    async with db.transaction():
        finish = "select outbox.finish($1, $2, null, null, null, null)"
        assert await db.fetchval(finish, first.id, first.fence)
        ending = asyncio.create_task(end(other_link, second))
        while not await link.fetch("select from pg_locks where not granted"):
            assert not ending.done(), "it did not wait, and saw nothing of the other"
    await ending
    assert [claim.id for claim in await take(link)] == [last.id]


@pytest.mark.parametrize("state", [State.FAILED, State.CANCELLED])
async def test_what_cannot_succeed_any_more_is_cancelled_and_all_after_it(
    engine: AsyncEngine, sessions: Sessions, link: Link, state: State
) -> None:
    ids = await chain(sessions, 4)
    [claim] = await take(link)
    await end(link, claim, Finished(state))
    assert await states(engine, ids) == [state, *[State.CANCELLED] * 3]
    job = await read(engine, ids[1])
    assert job.errors[-1]["type"] == "outbox.PredecessorFailed"
    assert str(ids[0]) in job.errors[-1]["message"]
    assert job.finished_at is not None


@pytest.mark.parametrize("state", [State.FAILED, State.CANCELLED, State.SUCCEEDED])
async def test_even_if_failed_it_runs_when_all_have_ended(
    engine: AsyncEngine, sessions: Sessions, link: Link, state: State
) -> None:
    async with sessions.begin() as session:
        before = [noop.enqueue(session, n) for n in range(2)]
        last = noop.options(after=before, even_if_failed=True).enqueue(session)
    first, second = await take(link)
    await end(link, first, Finished(state))
    assert await take(link) == []
    await end(link, second)
    assert [claim.id for claim in await take(link)] == [last.id]


async def test_a_retry_is_no_end(sessions: Sessions, link: Link) -> None:
    first, _ = await chain(sessions, 2)
    [claim] = await take(link)
    await end(link, claim, Postponed(0.0, charged=True))
    assert [claim.id for claim in await take(link)] == [first]


async def test_a_dead_workers_poison_ends_what_comes_after_it(
    engine: AsyncEngine, sessions: Sessions, link: Link, db: asyncpg.Connection
) -> None:
    ids = await chain(sessions, 3)
    await take(link)
    await db.execute(
        "update outbox.live_job set lease_until = now() - interval '1 s', lost = $1 where state = 'running'",
        MAX_LOST - 1,
    )
    assert await maintenance.rescue(link) == 1
    assert await states(engine, ids) == [State.FAILED, State.CANCELLED, State.CANCELLED]


async def test_one_that_is_cancelled_while_it_waits_takes_those_after_it_with_it(
    engine: AsyncEngine, sessions: Sessions, link: Link
) -> None:
    ids = await chain(sessions, 3)
    async with sessions.begin() as session:
        assert (await control.cancel(session, ids[1])).state is State.CANCELLED
    assert await states(engine, ids) == [State.PENDING, State.CANCELLED, State.CANCELLED]
    [claim] = await take(link)
    await end(link, claim)
    assert await states(engine, ids) == [State.SUCCEEDED, State.CANCELLED, State.CANCELLED]


async def test_a_diamond(engine: AsyncEngine, sessions: Sessions, link: Link) -> None:
    async with sessions.begin() as session:
        top = noop.enqueue(session)
        sides = [noop.options(after=[top]).enqueue(session, n) for n in range(2)]
        bottom = noop.options(after=sides).enqueue(session)
    [claim] = await take(link)
    await end(link, claim)
    taken = await take(link)
    assert {claim.id for claim in taken} == {job.id for job in sides}
    await end(link, taken[0])
    await end(link, taken[1], Finished(State.FAILED))
    assert (await read(engine, bottom.id)).state is State.CANCELLED


async def test_one_of_a_group_takes_its_place_when_it_may_run(sessions: Sessions, link: Link) -> None:
    async with sessions.begin() as session:
        first = noop.enqueue(session)
        last = noop.options(after=[first], group="g").enqueue(session)
        other = noop.options(group="g").enqueue(session)
    taken = {claim.id: claim for claim in await take(link)}
    assert taken.keys() == {first.id, other.id}
    await end(link, taken[first.id])
    assert await take(link) == []
    await end(link, taken[other.id])
    assert [claim.id for claim in await take(link)] == [last.id]


async def test_a_delay_still_holds_when_it_may_run(sessions: Sessions, link: Link) -> None:
    async with sessions.begin() as session:
        first = noop.enqueue(session)
        noop.options(after=[first], delay=3600).enqueue(session)
    [claim] = await take(link)
    await end(link, claim)
    assert await take(link) == []


async def test_results_of_those_before_are_there_and_the_next_is_not_left_to_the_next_poll(
    engine: AsyncEngine, sessions: Sessions, database_url: str
) -> None:
    shop = Outbox(sessions=sessions)

    @shop.task(retry=Retry(max_attempts=1))
    async def add(n: int, *, session: AsyncSession = INJECTED, ctx: JobContext = INJECTED) -> int:
        results = await ctx.results(session)
        return n + sum(int(each) for each in results)

    @shop.task()
    async def count(*, session: AsyncSession = INJECTED, ctx: JobContext = INJECTED) -> list[Any]:
        return await ctx.results(session)

    @shop.task(retry=Retry(max_attempts=1))
    async def fail() -> None:
        raise ValueError

    async with sessions.begin() as session:
        parts = [add.enqueue(session, n) for n in (5, 3, 1)]
        total = add.options(after=parts).enqueue(session, 100)
        broken = fail.enqueue(session)
        last = count.options(after=[total, broken, parts[1]], even_if_failed=True).enqueue(session)
    async with working(shop, database_url, poll_min=30.0, poll_max=30.0):
        await in_state(engine, last.id, State.SUCCEEDED)
    assert (await read(engine, total.id)).result == 109
    assert (await read(engine, last.id)).result == [109, None, 3]


async def test_everything_of_it_commits_or_nothing_does(
    engine: AsyncEngine, sessions: Sessions, db: asyncpg.Connection
) -> None:
    async with sessions() as session:
        first = noop.enqueue(session)
        async with session.begin_nested() as savepoint:
            noop.options(after=[first]).enqueue(session)
            await session.flush()
            await savepoint.rollback()
        await session.commit()
    assert await factories.count(engine) == 1
    assert await db.fetchval("select count(*) from outbox.dependency") == 0


async def test_it_can_only_come_after_jobs_of_the_same_transaction(engine: AsyncEngine, sessions: Sessions) -> None:
    async with sessions.begin() as session:
        stranger = noop.enqueue(session)
    for before in (stranger, noop.job()):
        async with sessions() as session:
            noop.options(after=[before]).enqueue(session)
            with pytest.raises(EnqueueFailed, match="same transaction"):
                await session.flush()


async def test_it_cannot_come_after_one_that_a_savepoint_has_taken_back(sessions: Sessions) -> None:
    async with sessions() as session:
        async with session.begin_nested() as savepoint:
            first = noop.enqueue(session)
            await session.flush()
            await savepoint.rollback()
        noop.options(after=[first]).enqueue(session)
        with pytest.raises(EnqueueFailed, match="same transaction"):
            await session.flush()


async def test_many_at_once(engine: AsyncEngine, sessions: Sessions, link: Link) -> None:
    before = [noop.job(n) for n in range(1000)]
    last = noop.options(after=before).job()
    async with sessions.begin() as session:
        await outbox.enqueue_many(session, [*before, last])
    taken = await claims.take(link, {"default": 2000}, {"noop": 8}, WORKER, 30.0)
    assert len(taken) == 1000
    assert await claims.settle(link, [(claim, SUCCEEDED) for claim in taken]) == []
    assert [claim.id for claim in await take(link)] == [last.id]


@pytest.mark.parametrize(
    "options",
    [
        {"even_if_failed": True},
        {"after": [noop.job()], "key": "k"},
        {"after": [noop.options(key="k").job()]},
        {"after": [noop.job()] * 1001},
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="after"):
        noop.options(**options)


async def test_old_dependencies_are_pruned(sessions: Sessions, link: Link, db: asyncpg.Connection) -> None:
    await chain(sessions, 2)
    await maintenance.keep_partitions(link, 14)
    assert await db.fetchval("select count(*) from outbox.dependency") == 1
    await db.execute("update outbox.dependency set job_id = outbox.first_id(now() - interval '15 days')")
    await maintenance.keep_partitions(link, 14)
    assert await db.fetchval("select count(*) from outbox.dependency") == 0


async def test_a_flow_survives_its_workers(engine: AsyncEngine, sessions: Sessions, database_url: str) -> None:
    """Whatever order several workers end jobs in, each runs after those before it, and all of them run."""
    shop = Outbox()
    ended: set[int] = set()
    early: list[int] = []

    @shop.task()
    async def step(n: int, before: list[int]) -> None:
        if not ended.issuperset(before):
            early.append(n)
        await asyncio.sleep(0.001)
        ended.add(n)

    async with sessions.begin() as session:
        jobs: list[NewJob] = []
        for n in range(150):
            before = sorted({n - 1 - n % 7, n - 2 - n % 3} & set(range(n)))
            jobs.append(step.options(after=[jobs[each] for each in before]).enqueue(session, n, before))
    async with working(shop, database_url), working(shop, database_url), working(shop, database_url):
        await drained(engine)
    assert early == []
    assert ended == set(range(150))
