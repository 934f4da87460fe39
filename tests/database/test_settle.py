"""How an attempt ended is written once, by the holder of the fence, and no bad outcome drags others with it."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from outbox import Job, State, claim, sql
from outbox.connection import Link
from outbox.context import Claim
from outbox.outcome import RELEASED, Error, Finished, Outcome, Postponed
from outbox.settler import Settler
from outbox.tally import Tally
from tests import factories
from tests.factories import held, plant
from tests.waiting import eventually

BOOM = Error("builtins.ValueError", "boom", "Traceback …")
SUCCESS = Finished(State.SUCCEEDED, '{"ok": true}')


@asynccontextmanager
async def settling(link: Link, claims: dict[object, Claim]) -> AsyncIterator[Settler]:
    settler = Settler(link, claims, lambda: None, Tally())
    running = asyncio.create_task(settler.run())
    try:
        yield settler
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize(
    ("outcome", "state", "result", "errors"),
    [
        (SUCCESS, State.SUCCEEDED, {"ok": True}, 0),
        (Finished(State.SUCCEEDED), State.SUCCEEDED, None, 0),
        (Finished(State.SUCCEEDED, "null"), State.SUCCEEDED, None, 0),
        (Finished(State.FAILED, error=BOOM), State.FAILED, None, 1),
        (Finished(State.CANCELLED), State.CANCELLED, None, 0),
        (Finished(State.CANCELLED, error=BOOM), State.CANCELLED, None, 1),
    ],
)
async def test_a_finished_job_leaves_the_live_table_with_all_it_had(
    engine: AsyncEngine,
    link: Link,
    db: asyncpg.Connection,
    outcome: Finished,
    state: State,
    result: object,
    errors: int,
) -> None:
    id = await plant(engine, "running", attempt=2, fence=9, lost=1, tags=["t"], payload={"n": 1}, priority=3, queue="q")
    before = await factories.read(engine, id)
    assert await claim.settle(link, [(held(id, fence=9), outcome)]) == []

    after = await factories.read(engine, id)
    assert (after.state, after.result, len(after.errors)) == (state, result, errors)
    assert (after.attempt, after.fence, after.lost, after.lease_until) == (3, 9, 1, None)
    assert after.finished_at is not None
    for kept in ("task", "queue", "priority", "run_at", "payload", "max_attempts", "worker_id", "created_at", "tags"):
        assert getattr(after, kept) == getattr(before, kept)
    assert await db.fetchval("select count(*) from outbox.live_job") == 0
    assert await db.fetchval("select count(*) from outbox.finished_job_default") == 0


@pytest.mark.parametrize(
    ("outcome", "attempt", "errors"),
    [(Postponed(60, BOOM, charged=True), 3, 1), (Postponed(60, BOOM), 2, 1), (Postponed(60), 2, 0), (RELEASED, 2, 0)],
    ids=["retry", "retry-after", "snooze", "release"],
)
async def test_a_postponed_job_waits_again(
    engine: AsyncEngine, link: Link, db: asyncpg.Connection, outcome: Postponed, attempt: int, errors: int
) -> None:
    id = await plant(engine, "running", attempt=2, fence=9)
    before = await db.fetchval("select clock_timestamp()")
    assert await claim.settle(link, [(held(id, fence=9), outcome)]) == []

    after = await factories.read(engine, id)
    assert (after.state, after.attempt, after.fence, len(after.errors)) == (State.PENDING, attempt, 9, errors)
    assert after.lease_until is None
    assert 0 <= (after.run_at - before).total_seconds() - outcome.delay < 60


async def test_an_error_says_which_attempt_of_which_claim_it_was(engine: AsyncEngine, link: Link) -> None:
    retried = await plant(engine, "running", attempt=2, fence=9)
    failed = await plant(engine, "running", attempt=4, fence=11)
    await claim.settle(
        link,
        [
            (held(retried, fence=9), Postponed(0, BOOM, charged=True)),
            (held(failed, fence=11), Finished(State.FAILED, error=BOOM)),
        ],
    )
    for id, attempt, fence in ((retried, 3, 9), (failed, 5, 11)):
        [error] = (await factories.read(engine, id)).errors
        assert error.pop("at") > "2026"
        assert error == {
            "type": "builtins.ValueError",
            "message": "boom",
            "traceback": "Traceback …",
            "attempt": attempt,
            "fence": fence,
            "worker_id": str(factories.WORKER),
        }


async def test_the_last_twenty_errors_are_kept_oldest_first(
    engine: AsyncEngine, link: Link, db: asyncpg.Connection
) -> None:
    id = await plant(engine)
    for n in range(25):
        await db.execute("update outbox.live_job set run_at = now()")
        [taken] = await claim.take(link, {"default": 1}, {"noop": 100}, factories.WORKER, 30)
        await claim.settle(link, [(taken, Postponed(0, Error("E", f"failure {n}"), charged=True))])
    waiting = await factories.read(engine, id)
    assert [error["message"] for error in waiting.errors] == [f"failure {n}" for n in range(5, 25)]

    [taken] = await claim.take(link, {"default": 1}, {"noop": 100}, factories.WORKER, 30)
    await claim.settle(link, [(taken, Finished(State.FAILED, error=Error("E", "the end")))])
    ended = await factories.read(engine, id)
    assert [error["message"] for error in ended.errors] == [*(f"failure {n}" for n in range(6, 25)), "the end"]


async def test_the_last_word_of_progress_is_settled_with_the_outcome(engine: AsyncEngine, link: Link) -> None:
    spoke, silent = [await plant(engine, "running", progress={"done": 1}) for _ in range(2)]
    later = await plant(engine, "running", progress={"done": 1})
    await claim.settle(
        link,
        [
            (held(spoke, progress='{"done": 2}'), SUCCESS),
            (held(silent), SUCCESS),
            (held(later, progress='{"done": 3}'), RELEASED),
        ],
    )
    said = [(await factories.read(engine, id)).progress for id in (spoke, silent, later)]
    assert said == [{"done": 2}, {"done": 1}, {"done": 3}]


# The fence.


async def finish(link: Link, claim_: Claim) -> bool:
    return not await claim.settle(link, [(claim_, SUCCESS)])


async def fail(link: Link, claim_: Claim) -> bool:
    return not await claim.settle(link, [(claim_, Finished(State.FAILED, error=BOOM))])


async def postpone(link: Link, claim_: Claim) -> bool:
    return not await claim.settle(link, [(claim_, Postponed(9, BOOM, charged=True))])


async def renew(link: Link, claim_: Claim) -> bool:
    [row] = await link.fetch(sql.RENEW, [claim_.id], [claim_.fence], 9999.0)
    return bool(row["ours"])


async def progress(link: Link, claim_: Claim) -> None:
    await link.fetch(sql.SAY, [claim_.id], [claim_.fence], ['{"done": 99}'], ["1"])


WRITES = [finish, fail, postpone, renew, progress]


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("fence", [1, 3, 0, -1, 2**62])
async def test_a_write_with_another_fence_is_refused_and_changes_nothing(
    engine: AsyncEngine, link: Link, write: Callable[[Link, Claim], Any], fence: int
) -> None:
    id = await plant(engine, "running", fence=2)
    before = await factories.read(engine, id)
    assert not await write(link, held(id, fence=fence))
    assert await factories.read(engine, id) == before


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("kind", ["pending", "retrying", "succeeded", "failed", "cancelled"])
async def test_a_write_about_a_job_that_does_not_run_is_refused_and_changes_nothing(
    engine: AsyncEngine, link: Link, write: Callable[[Link, Claim], Any], kind: str
) -> None:
    id = await plant(engine, kind, fence=1)
    before = await factories.read(engine, id)
    assert not await write(link, held(id))
    assert await factories.read(engine, id) == before
    assert await factories.count(engine) == 1


@pytest.mark.parametrize("write", WRITES)
async def test_a_write_with_the_right_fence_is_made(
    engine: AsyncEngine, link: Link, write: Callable[[Link, Claim], Any]
) -> None:
    id = await plant(engine, "running", fence=2)
    before = await factories.read(engine, id)
    assert await write(link, held(id, fence=2)) in (True, None)
    assert await factories.read(engine, id) != before


@pytest.mark.parametrize("write", WRITES)
async def test_a_write_about_a_job_that_is_gone_is_refused(
    engine: AsyncEngine, link: Link, write: Callable[[Link, Claim], Any]
) -> None:
    assert not await write(link, held(uuid4()))
    assert await factories.count(engine) == 0


async def test_a_worker_that_was_rescued_from_cannot_overwrite_the_next(
    engine: AsyncEngine, link: Link, other_link: Link, db: asyncpg.Connection
) -> None:
    id = await plant(engine)
    [zombie] = await claim.take(link, {"default": 1}, {"noop": 8}, uuid4(), 30)
    await db.execute("update outbox.live_job set lease_until = now() - interval '1 second'")
    await other_link.fetch(sql.RESCUE, 3, 10, [])
    assert await claim.settle(link, [(zombie, SUCCESS)]) == [zombie]
    [successor] = await claim.take(other_link, {"default": 1}, {"noop": 8}, uuid4(), 30)
    assert await claim.settle(link, [(zombie, Finished(State.FAILED, error=BOOM))]) == [zombie]
    assert await claim.settle(other_link, [(successor, SUCCESS)]) == []
    assert await claim.settle(link, [(zombie, RELEASED)]) == [zombie]
    job = await factories.read(engine, id)
    assert (job.state, job.fence, job.result) == (State.SUCCEEDED, 2, {"ok": True})


# Batches.


async def test_a_batch_of_every_kind_is_settled_and_the_lost_are_named(engine: AsyncEngine, link: Link) -> None:
    outcomes: list[tuple[Outcome, State]] = [
        (SUCCESS, State.SUCCEEDED),
        (Finished(State.FAILED, error=BOOM), State.FAILED),
        (Finished(State.CANCELLED), State.CANCELLED),
        (Postponed(9, BOOM, charged=True), State.PENDING),
        (RELEASED, State.PENDING),
    ]
    batch, lost, expected = [], [], {}
    for outcome, state in outcomes * 3:
        id = await plant(engine, "running")
        batch.append((held(id), outcome))
        expected[id] = state
        stale = await plant(engine, "running", fence=2)
        lost.append(held(stale))
        batch.append((lost[-1], outcome))
        expected[stale] = State.RUNNING

    refused = await claim.settle(link, batch)
    assert {each.id for each in refused} == {each.id for each in lost}
    assert len(refused) == len(lost)
    assert {job.id: job.state for job in await factories.read_all(engine)} == expected


async def test_the_same_claim_twice_is_settled_once_and_harms_no_other(engine: AsyncEngine, link: Link) -> None:
    twice, other = await plant(engine, "running"), await plant(engine, "running")
    claims: dict[object, Claim] = {id: held(id) for id in (twice, other)}
    async with settling(link, claims) as settler:
        for id in (twice, other, twice):
            settler.put(claims[id], SUCCESS)
        await asyncio.wait_for(settler.emptied(), 30)
    assert await factories.count(engine, "succeeded") == await factories.count(engine) == 2


async def test_a_settle_that_waited_for_a_cancel_request_moves_the_row_as_it_is_then(
    engine: AsyncEngine, link: Link, db: asyncpg.Connection
) -> None:
    ids = {state: await plant(engine, "running") for state in (State.SUCCEEDED, State.CANCELLED)}
    outcomes: dict[State, Outcome] = {State.SUCCEEDED: SUCCESS, State.CANCELLED: Postponed(9, BOOM, charged=True)}
    for state, id in ids.items():
        transaction = db.transaction()
        await transaction.start()
        await db.execute(sql.REQUEST_CANCEL.replace(":id", "$1"), id)
        writing = asyncio.create_task(claim.settle(link, [(held(id), outcomes[state])]))

        async def waits() -> bool:
            return bool(await db.fetchval("select exists (select from pg_locks where not granted)"))

        await eventually(waits)
        await transaction.commit()
        assert await writing == []
        job = await factories.read(engine, id)
        assert job.state is state
        assert job.cancel_requested_at is not None
    assert await factories.count(engine) == 2


async def test_a_thousand_outcomes_are_one_statement_and_each_finds_its_own_job(
    engine: AsyncEngine, link: Link, db: asyncpg.Connection
) -> None:
    await factories.plant_many(engine, 1000)
    taken = await claim.take(link, {"default": 1000}, {"noop": 8}, factories.WORKER, 30)
    outcomes = [(each, Finished(State.SUCCEEDED, each.payload)) for each in reversed(taken)]
    assert await claim.settle(link, outcomes) == []
    assert await db.fetchval("select count(*) from outbox.finished_job where result = payload") == 1000


# Cancelled while it ran.


@pytest.mark.parametrize("outcome", [Postponed(9, BOOM, charged=True), Postponed(9), RELEASED])
async def test_a_cancel_request_wins_over_another_run(engine: AsyncEngine, link: Link, outcome: Postponed) -> None:
    wanted = await plant(engine, "cancelling")
    other = await plant(engine, "running")
    assert await claim.settle(link, [(held(wanted), outcome), (held(other), outcome)]) == []
    assert (await factories.read(engine, wanted)).state is State.CANCELLED
    assert (await factories.read(engine, other)).state is State.PENDING


@pytest.mark.parametrize("state", [State.SUCCEEDED, State.FAILED])
async def test_an_end_wins_over_a_cancel_request(engine: AsyncEngine, link: Link, state: State) -> None:
    id = await plant(engine, "cancelling")
    assert await claim.settle(link, [(held(id), Finished(state))]) == []
    job = await factories.read(engine, id)
    assert job.state is state
    assert job.cancel_requested_at is not None


async def test_the_error_of_an_attempt_is_kept_when_a_cancel_request_ends_its_job(
    engine: AsyncEngine, link: Link
) -> None:
    id = await plant(engine, "cancelling")
    await claim.settle(link, [(held(id), Postponed(9, BOOM, charged=True))])
    job = await factories.read(engine, id)
    assert job.state is State.CANCELLED
    assert [error["message"] for error in job.errors] == ["boom"]


# One bad outcome.


@pytest.mark.parametrize(
    "bad",
    [
        Finished(State.SUCCEEDED, '{"a": "\\u0000"}'),
        Finished(State.SUCCEEDED, "not json"),
        Finished(State.SUCCEEDED, '"\\ud800"'),
        Postponed(9, Error("E", "nul \0 byte"), charged=True),
        Finished(State.FAILED, error=Error("E\0", "", "")),
    ],
)
async def test_an_outcome_that_cannot_be_stored_suffers_alone(engine: AsyncEngine, link: Link, bad: Outcome) -> None:
    good = [await plant(engine, "running") for _ in range(20)]
    unlucky = await plant(engine, "running")
    stale = await plant(engine, "running", fence=2)
    claims: dict[object, Claim] = {id: held(id) for id in (*good, unlucky, stale)}
    async with settling(link, claims) as settler:
        for id in (*good[:10], unlucky, stale, *good[10:]):
            settler.put(claims[id], bad if id == unlucky else SUCCESS)
        await asyncio.wait_for(settler.emptied(), 30)
    assert claims == {}
    for id in good:
        job = await factories.read(engine, id)
        assert (job.state, job.result) == (State.SUCCEEDED, {"ok": True})
    job = await factories.read(engine, unlucky)
    assert job.state is (bad.state if isinstance(bad, Finished) else State.PENDING)
    assert job.result is None
    assert [error["type"] for error in job.errors] == ["outbox.errors.ResultNotStored"]
    assert (await factories.read(engine, stale)).state is State.RUNNING


# The settler.


async def test_the_settler_outlives_a_lost_connection(engine: AsyncEngine, link: Link, db: asyncpg.Connection) -> None:
    ids = [await plant(engine, "running") for _ in range(3)]
    claims: dict[object, Claim] = {id: held(id) for id in ids}
    async with settling(link, claims) as settler:
        settler.put(claims[ids[0]], SUCCESS)
        await asyncio.wait_for(settler.emptied(), 30)
        await db.fetch("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'test'")
        settler.put(claims[ids[1]], SUCCESS)
        settler.put(claims[ids[2]], SUCCESS)
        await asyncio.wait_for(settler.emptied(), 30)
    assert await factories.count(engine, "succeeded") == 3


async def test_a_settle_waits_for_a_row_that_somebody_holds(
    engine: AsyncEngine, link: Link, db: asyncpg.Connection
) -> None:
    id = await plant(engine, "running")
    claims: dict[object, Claim] = {id: held(id)}
    async with settling(link, claims) as settler:
        async with db.transaction():
            await db.execute("select from outbox.live_job for update")
            settler.put(claims[id], SUCCESS)

            async def waits() -> bool:
                statement = "select exists (select from pg_locks where not granted and pid <> pg_backend_pid())"
                return bool(await db.fetchval(statement))

            await eventually(waits)
            assert id in claims
        await asyncio.wait_for(settler.emptied(), 30)
    assert claims == {}
    assert await factories.count(engine, "succeeded") == 1


async def test_ids_that_look_alike_are_told_apart(engine: AsyncEngine, link: Link) -> None:
    first, second = UUID(int=1), UUID(int=1 << 127)
    await plant(engine, "running", id=first, fence=2)
    await plant(engine, "running", id=second, fence=1)
    assert len(await claim.settle(link, [(held(first, fence=1), SUCCESS), (held(second, fence=2), SUCCESS)])) == 2
    jobs: list[Job] = await factories.read_all(engine)
    assert [job.state for job in jobs] == [State.RUNNING, State.RUNNING]
    assert json.dumps([job.result for job in jobs]) == "[null, null]"
