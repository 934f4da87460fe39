"""What a person may do: cancel and requeue, in the caller's transaction, refused where the state does not allow it."""

from uuid import uuid4

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from outbox import State, claim, control
from outbox.connection import Link
from outbox.errors import IllegalTransition, JobNotFound
from outbox.outcome import Finished
from outbox.status import JobFilter
from tests import factories
from tests.factories import plant
from tests.waiting import eventually


@pytest.mark.parametrize("kind", ["pending", "scheduled", "retrying"])
async def test_a_waiting_job_is_cancelled_at_once(
    engine: AsyncEngine, session: AsyncSession, link: Link, kind: str
) -> None:
    id = await plant(engine, kind, payload={"n": 1}, tags=["t"], errors=[{"type": "E"}])
    answer = await control.cancel(session, id)
    await session.commit()
    job = await factories.read(engine, id)
    assert answer == job
    assert (job.state, job.payload, job.tags, job.errors) == (State.CANCELLED, {"n": 1}, ["t"], [{"type": "E"}])
    assert job.cancel_requested_at is not None
    assert job.finished_at is not None
    assert await claim.take(link, {"default": 9}, {"noop": 8}, factories.WORKER, 30) == []


async def test_a_running_job_is_asked_to_stop(engine: AsyncEngine, session: AsyncSession) -> None:
    id = await plant(engine, "running")
    first = await control.cancel(session, id)
    await session.commit()
    assert (first.state, first.fence, first.lease_until is not None) == (State.RUNNING, 1, True)
    again = await control.cancel(session, id)
    assert first.cancel_requested_at == again.cancel_requested_at is not None


@pytest.mark.parametrize("kind", ["failed", "cancelled"])
async def test_a_requeued_job_starts_over_and_keeps_its_history(
    engine: AsyncEngine, session: AsyncSession, link: Link, kind: str
) -> None:
    id = await plant(
        engine, kind, attempt=5, fence=9, lost=2, max_attempts=5, errors=[{"type": "E"}], payload={"n": 1},
        queue="mail", priority=3, tags=["t"], progress={"done": 1},
    )  # fmt: skip
    before = await factories.read(engine, id)
    answer = await control.requeue(session, id)
    await session.commit()
    job = await factories.read(engine, id)
    assert answer == job
    assert (job.state, job.attempt, job.lost, job.fence, job.max_attempts) == (State.PENDING, 0, 0, 9, 5)
    assert (job.errors, job.payload, job.queue, job.priority, job.tags) == (
        [{"type": "E"}], {"n": 1}, "mail", 3, ["t"],
    )  # fmt: skip
    for unset in ("cancel_requested_at", "finished_at", "result", "progress", "lease_until"):
        assert getattr(job, unset) is None
    assert job.created_at == before.created_at
    assert job.run_at > before.run_at
    assert await factories.count(engine) == 1

    [taken] = await claim.take(link, {"mail": 1}, {"noop": 8}, factories.WORKER, 30)
    assert (taken.fence, taken.attempt) == (10, 1)
    assert await claim.settle(link, [(taken, Finished(State.SUCCEEDED))]) == []


@pytest.mark.parametrize(
    ("verb", "kind", "state"),
    [
        ("cancel", "succeeded", State.SUCCEEDED),
        ("cancel", "failed", State.FAILED),
        ("cancel", "cancelled", State.CANCELLED),
        ("requeue", "pending", State.PENDING),
        ("requeue", "running", State.RUNNING),
        ("requeue", "succeeded", State.SUCCEEDED),
    ],
)
async def test_an_illegal_move_is_refused_with_what_would_be_legal(
    engine: AsyncEngine, session: AsyncSession, verb: str, kind: str, state: State
) -> None:
    id = await plant(engine, kind)
    before = await factories.read(engine, id)
    with pytest.raises(IllegalTransition) as caught:
        await getattr(control, verb)(session, id)
    await session.commit()
    legal = ("pending", "running") if verb == "cancel" else ("cancelled", "failed")
    assert (caught.value.id, caught.value.state, caught.value.allowed) == (id, state, legal)
    assert str(id) in str(caught.value)
    assert await factories.read(engine, id) == before


@pytest.mark.parametrize("verb", ["cancel", "requeue"])
async def test_a_job_that_is_not_there_is_not_found(session: AsyncSession, verb: str) -> None:
    id = uuid4()
    with pytest.raises(JobNotFound) as caught:
        await getattr(control, verb)(session, id)
    assert caught.value.id == id


@pytest.mark.parametrize("verb", ["cancel", "requeue"])
async def test_it_is_part_of_the_callers_transaction(engine: AsyncEngine, session: AsyncSession, verb: str) -> None:
    id = await plant(engine, "pending" if verb == "cancel" else "failed")
    before = await factories.read(engine, id)
    await getattr(control, verb)(session, id)
    assert await factories.read(engine, id) == before
    await session.rollback()
    assert await factories.read(engine, id) == before


async def test_a_connection_will_do(engine: AsyncEngine) -> None:
    id = await plant(engine)
    async with engine.begin() as connection:
        assert (await control.cancel(connection, id)).state is State.CANCELLED
        assert (await control.requeue(connection, id)).state is State.PENDING


async def test_a_cancel_that_meets_a_settle_waits_and_then_sees_the_end(
    engine: AsyncEngine, session: AsyncSession, db: asyncpg.Connection
) -> None:
    import asyncio

    id = await plant(engine, "running")
    transaction = db.transaction()
    await transaction.start()
    await db.execute("delete from outbox.live_job where id = $1", id)
    await db.execute("insert into outbox.finished_job (id, task, state) values ($1, 'noop', 'succeeded')", id)
    cancelling = asyncio.create_task(control.cancel(session, id))

    async def waits() -> bool:
        async with engine.connect() as connection:
            found = await connection.exec_driver_sql("select exists (select from pg_locks where not granted)")
            return bool(found.scalar_one())

    await eventually(waits)
    await transaction.commit()
    with pytest.raises(IllegalTransition) as caught:
        await cancelling
    assert caught.value.state == "succeeded"


# Many at once.


async def test_many_are_requeued_by_filter_the_oldest_first(engine: AsyncEngine, session: AsyncSession) -> None:
    first = [await plant(engine, kind, task="mail", tags=["t"]) for kind in ("failed", "cancelled", "failed")]
    others = [await plant(engine, "failed"), await plant(engine, "succeeded", task="mail"), await plant(engine)]
    wanted = JobFilter(tasks=["mail"], tags=["t"])

    assert await control.requeue_many(session, wanted, dry_run=True) == 3
    await session.commit()
    assert await factories.count(engine, "pending") == 1

    assert await control.requeue_many(session, wanted, limit=2) == 2
    assert await control.requeue_many(session, wanted, limit=2) == 1
    assert await control.requeue_many(session, wanted, limit=2) == 0
    await session.commit()
    states = {job.id: job.state for job in await factories.read_all(engine)}
    assert {states[id] for id in first} == {State.PENDING}
    assert [states[id] for id in others] == [State.FAILED, State.SUCCEEDED, State.PENDING]


@pytest.mark.parametrize(
    ("action", "kinds", "changed"),
    [
        ("run", ["pending", "scheduled"], 6),  # those that are due stay as they are
        ("priority", ["pending"], 12),
        ("cancel", ["running", "pending"], 12),  # those that run stay where they are
        ("retry", ["failed"], 11),  # the key of the first is taken
        ("discard", ["failed", "succeeded"], 12),
    ],
)
async def test_portions_follow_each_other_and_end_though_some_stay_as_they_are(
    engine: AsyncEngine, session: AsyncSession, action: control.Action, kinds: list[str], changed: int
) -> None:
    if action == "retry":
        await plant(engine, task="mail", key="k")
        await plant(engine, "failed", task="mail", key="k")
    for n in range(12 if action != "retry" else 11):
        await plant(engine, kinds[n % len(kinds)], task="mail")
    after, counts = None, []
    for _ in range(20):  # it would go on for ever, else
        done = await control.change_many(
            session,
            action,
            JobFilter(tasks=["mail"]),
            limit=5,
            after=after,
            priority=3 if action == "priority" else None,
        )
        counts.append(done.changed)
        await session.commit()
        if (after := done.next) is None:
            break
    assert (len(counts), sum(counts)) == (3, changed)


@pytest.mark.parametrize("states", [[State.SUCCEEDED], [State.PENDING, State.RUNNING]])
async def test_a_filter_for_other_states_requeues_nothing(
    engine: AsyncEngine, session: AsyncSession, states: list[State]
) -> None:
    for kind in ("failed", "succeeded", "running", "pending"):
        await plant(engine, kind)
    before = await factories.read_all(engine)
    assert await control.requeue_many(session, JobFilter(states=states)) == 0
    await session.commit()
    assert await factories.read_all(engine) == before


async def test_of_those_with_one_key_the_latest_is_requeued_if_none_lives(
    engine: AsyncEngine, session: AsyncSession
) -> None:
    _, latest = [await plant(engine, "failed", key="a") for _ in range(2)]
    await plant(engine, "failed", key="b")
    await plant(engine, key="b")
    assert await control.requeue_many(session, JobFilter()) == 1
    await session.commit()
    assert (await factories.read(engine, latest)).state is State.PENDING
    assert await factories.count(engine, "failed") == 2
