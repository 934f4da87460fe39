"""Batches count how their jobs end, exactly, and call back once when all have."""

import asyncio
from collections import Counter
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from outbox import Outbox, Retry, State, batch, control, maintenance
from outbox import claim as claims
from outbox.batch import Batch, BatchState, BatchSummary
from outbox.connection import Link
from outbox.context import Claim
from outbox.errors import BatchNotFound, EnqueueFailed
from outbox.outcome import Finished, Outcome, Postponed
from tests import factories
from tests.database.workers import drained, working
from tests.factories import WORKER
from tests.waiting import eventually

Sessions = async_sessionmaker[AsyncSession]

outbox = Outbox()
SUCCEEDED, FAILED = Finished(State.SUCCEEDED), Finished(State.FAILED)


@outbox.task()
async def noop(n: int = 0) -> None: ...


@outbox.task(queue="callbacks")
async def good(batch: BatchSummary) -> None: ...


@outbox.task(queue="callbacks")
async def bad(batch: BatchSummary) -> None: ...


@outbox.task(queue="callbacks")
async def done(batch: BatchSummary) -> None: ...


def of(count: int, **options: Any) -> Batch:
    jobs = [noop.options(**options).job(n) for n in range(count)]
    return Batch("mailing", jobs, on_success=good, on_failure=bad, on_complete=done.options(priority=3))


async def enqueued(sessions: Sessions, given: Batch) -> Batch:
    async with sessions.begin() as session:
        given.enqueue(session)
    return given


async def get(sessions: Sessions, given: Batch) -> BatchState:
    async with sessions() as session:
        state = await batch.get(session, given.id)
    assert state is not None
    return state


async def counts(sessions: Sessions, given: Batch) -> tuple[int, int, int, int]:
    state = await get(sessions, given)
    return state.total, state.succeeded, state.failed, state.cancelled


async def take(link: Link, wanted: int = 100) -> list[Claim]:
    return await claims.take(link, {"default": wanted}, {"noop": 8}, WORKER, 30.0)


async def end(link: Link, taken: list[Claim], outcome: Outcome = SUCCEEDED) -> None:
    assert await claims.settle(link, [(claim, outcome) for claim in taken]) == []


async def callbacks(engine: AsyncEngine) -> dict[str, Any]:
    return {job.task: job.payload["batch"] for job in await factories.read_all(engine) if job.queue == "callbacks"}


@pytest.mark.parametrize("bulk", [False, True])
async def test_it_counts_how_its_jobs_end_and_calls_back_at_the_last(
    engine: AsyncEngine, sessions: Sessions, link: Link, bulk: bool
) -> None:
    given = of(10)
    async with sessions.begin() as session:
        if bulk:
            await outbox.enqueue_many(session, given)
        else:
            given.enqueue(session)
    assert await counts(sessions, given) == (10, 0, 0, 0)
    taken = await take(link)
    await end(link, taken[:4])
    assert await counts(sessions, given) == (10, 4, 0, 0)
    assert (await get(sessions, given)).finished_at is None
    assert await callbacks(engine) == {}
    await end(link, taken[4:])
    summary = {"id": str(given.id), "name": "mailing", "total": 10, "succeeded": 10, "failed": 0, "cancelled": 0}
    assert await callbacks(engine) == {"good": summary, "done": summary}
    assert (await get(sessions, given)).finished_at is not None


async def test_one_that_has_not_succeeded_makes_it_a_failure(
    engine: AsyncEngine, sessions: Sessions, link: Link
) -> None:
    given = await enqueued(sessions, of(4))
    taken = await take(link)
    await end(link, taken[:1], FAILED)
    await end(link, taken[1:2], Finished(State.CANCELLED))
    await end(link, taken[2:3], Postponed(0.0, charged=True))
    await end(link, taken[3:])
    assert await counts(sessions, given) == (4, 1, 1, 1)
    assert await callbacks(engine) == {}
    await end(link, await take(link))
    called = await callbacks(engine)
    assert called.keys() == {"bad", "done"}
    assert {name: called["bad"][name] for name in ("succeeded", "failed", "cancelled")} == {
        "succeeded": 2,
        "failed": 1,
        "cancelled": 1,
    }


async def test_callbacks_commit_with_the_end_of_the_last_job(
    engine: AsyncEngine, sessions: Sessions, link: Link, db: asyncpg.Connection
) -> None:
    await enqueued(sessions, of(1))
    [claim] = await take(link)
    await end(link, [claim])
    rows = await db.fetch(
        """
        select xmin::text from outbox.live_job where queue = 'callbacks'
        union select xmin::text from outbox.finished_job
        """
    )
    assert len(rows) == 1


async def test_a_thousand_jobs_of_several_batches_end_in_several_workers_at_once(
    engine: AsyncEngine, sessions: Sessions, database_url: str
) -> None:
    shop = Outbox()
    called: list[BatchSummary] = []

    @shop.task(retry=Retry(max_attempts=1))
    async def step(n: int) -> None:
        await asyncio.sleep(0)
        if n % 10 == 0:
            raise ValueError

    @shop.task()
    async def over(batch: BatchSummary) -> None:
        called.append(batch)

    batches = [Batch(f"b{n}", [step.job(m) for m in range(200)], on_complete=over) for n in range(5)]
    async with sessions.begin() as session:
        for given in batches:
            await shop.enqueue_many(session, given)
    async with working(shop, database_url), working(shop, database_url), working(shop, database_url):
        await drained(engine)
    assert Counter(summary.id for summary in called) == {given.id: 1 for given in batches}
    assert {(each.total, each.succeeded, each.failed, each.cancelled) for each in called} == {(200, 180, 20, 0)}
    for given in batches:
        assert await counts(sessions, given) == (200, 180, 20, 0)


async def test_a_callback_is_not_left_to_the_next_poll(
    engine: AsyncEngine, sessions: Sessions, database_url: str
) -> None:
    shop = Outbox()
    called: list[BatchSummary] = []

    @shop.task()
    async def step() -> None: ...

    @shop.task()
    async def over(batch: BatchSummary) -> None:
        called.append(batch)

    await enqueued(sessions, Batch("b", [step.job()], on_complete=over))

    async def is_called() -> bool:
        return bool(called)

    async with working(shop, database_url, poll_min=30.0, poll_max=30.0):
        await eventually(is_called)


async def test_a_requeue_counts_back_and_calls_back_no_second_time(
    engine: AsyncEngine, sessions: Sessions, link: Link
) -> None:
    given = await enqueued(sessions, of(2))
    first, second = await take(link)
    await end(link, [first], FAILED)
    await end(link, [second])
    assert (await callbacks(engine)).keys() == {"bad", "done"}
    async with sessions.begin() as session:
        await control.requeue(session, first.id)
    assert await counts(sessions, given) == (2, 1, 0, 0)
    await end(link, await take(link))
    assert await counts(sessions, given) == (2, 2, 0, 0)
    assert (await callbacks(engine)).keys() == {"bad", "done"}


async def test_jobs_of_a_batch_may_come_after_one_another(engine: AsyncEngine, sessions: Sessions, link: Link) -> None:
    first = noop.job()
    given = await enqueued(sessions, Batch("flow", [first, noop.options(after=[first]).job()], on_complete=done))
    await end(link, await take(link), FAILED)
    assert await counts(sessions, given) == (2, 0, 1, 1)
    assert (await callbacks(engine)).keys() == {"done"}


async def test_a_batch_is_cancelled_as_a_whole(engine: AsyncEngine, sessions: Sessions, link: Link) -> None:
    jobs = [noop.job(0), noop.options(delay=60).job(1), noop.options(group="g").job(2), noop.options(group="g").job(3)]
    jobs.append(noop.options(after=[jobs[0]]).job(4))
    given = await enqueued(sessions, Batch("mailing", jobs, on_failure=bad))
    stranger = noop.options(group="g").job()
    async with sessions.begin() as session:
        await outbox.enqueue_many(session, [stranger])
    taken = await take(link)
    assert {claim.id for claim in taken} == {jobs[0].id, jobs[2].id}
    async with sessions.begin() as session:
        state = await batch.cancel(session, given.id)
    assert (state.total, state.cancelled) == (5, 3)
    assert [(await factories.read(engine, claim.id)).cancel_requested_at is None for claim in taken] == [False, False]
    await end(link, taken, Finished(State.CANCELLED))
    assert await counts(sessions, given) == (5, 0, 0, 5)
    assert (await callbacks(engine)).keys() == {"bad"}
    assert [claim.id for claim in await take(link)] == [stranger.id]


async def test_a_cancel_reaches_what_is_being_settled_meanwhile(
    engine: AsyncEngine, sessions: Sessions, link: Link, other_link: Link
) -> None:
    for _ in range(10):
        given = await enqueued(sessions, of(30))
        taken = await take(link)

        async def cancel(given: Batch = given) -> None:
            async with sessions.begin() as session:
                await batch.cancel(session, given.id)

        outcomes: list[Outcome] = [SUCCEEDED, Postponed(0.0), FAILED]
        settlements = [(claim, outcomes[n % 3]) for n, claim in enumerate(taken)]
        await asyncio.gather(
            cancel(), claims.settle(link, settlements[:15]), claims.settle(other_link, settlements[15:])
        )
        total, *ended = await counts(sessions, given)
        assert sum(ended) == total, "some still live"


async def test_a_cancel_waits_for_one_that_is_about_to_wait_again(
    sessions: Sessions, link: Link, db: asyncpg.Connection
) -> None:
    given = await enqueued(sessions, of(2))
    first, _ = await take(link)
    postponing = db.transaction()
    await postponing.start()
    await db.execute("update outbox.live_job set state = 'pending', lease_until = null where id = $1", first.id)

    async def cancel() -> BatchState:
        async with sessions.begin() as session:
            return await batch.cancel(session, given.id)

    async def looks_again() -> bool:
        return bool(
            await link.fetch("select from pg_stat_activity where wait_event = 'PgSleep' and query ~ 'cancel_batch'")
        )

    cancelling = asyncio.create_task(cancel())
    await eventually(looks_again)
    await postponing.commit()
    assert (await cancelling).cancelled == 1


async def test_one_that_is_not_there_is_said_so(sessions: Sessions) -> None:
    async with sessions() as session:
        assert await batch.get(session, uuid4()) is None
        with pytest.raises(BatchNotFound):
            await batch.cancel(session, uuid4())


async def test_rolled_back_there_is_no_batch(engine: AsyncEngine, sessions: Sessions) -> None:
    given = of(3)
    async with sessions() as session:
        given.enqueue(session)
        await session.flush()
        await session.rollback()
        assert await batch.get(session, given.id) is None
    assert await factories.count(engine) == 0


async def test_it_may_be_written_in_several_flushes_but_not_when_it_is_over(
    engine: AsyncEngine, sessions: Sessions, link: Link
) -> None:
    given = of(4)
    async with sessions.begin() as session:
        for job in given.jobs[:2]:
            session.add(job)
        await session.flush()
        session.add(given.jobs[2])
    assert await counts(sessions, given) == (3, 0, 0, 0)
    await end(link, await take(link))
    async with sessions() as session:
        session.add(given.jobs[3])
        with pytest.raises(EnqueueFailed, match="batch"):
            await session.flush()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"name": ""}, "name"),
        ({"jobs": []}, "jobs"),
        ({"jobs": [noop.options(key="k").job()]}, "key"),
        ({"on_success": noop}, r"\$"),
    ],
)
def test_a_batch_that_makes_no_sense_is_refused(arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(Exception, match=reason):
        Batch(**{"name": "b", "jobs": [noop.job()], **arguments})


def test_its_handles_can_be_iterated() -> None:
    given = of(3)
    assert len(given) == 3
    assert [job.batch and job.batch.id for job in given] == [given.id] * 3


async def test_old_batches_are_pruned(sessions: Sessions, link: Link, db: asyncpg.Connection) -> None:
    old, young = await enqueued(sessions, of(1)), await enqueued(sessions, of(1))
    await end(link, await take(link))
    await db.execute("update outbox.batch set finished_at = now() - interval '15 days' where id = $1", old.id)
    await maintenance.keep_partitions(link, 14)
    async with sessions() as session:
        assert await batch.get(session, old.id) is None
        assert await batch.get(session, young.id) is not None
