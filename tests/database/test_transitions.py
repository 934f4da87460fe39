"""Every verb on every state, against the real SQL: legal moves move, all others change nothing."""

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from sqlalchemy import delete
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from outbox import Job, State, claim, control, sql
from outbox.connection import Link
from outbox.errors import IllegalTransition
from outbox.job import MAX_LOST, TERMINAL, TRANSITIONS
from outbox.outcome import Finished, Postponed
from outbox.table import finished_job, live_job
from tests import factories
from tests.factories import ago, held, plant

Verb = Callable[[Link, AsyncEngine, UUID], Awaitable[None]]


async def take(link: Link, _engine: AsyncEngine, _id: UUID) -> None:
    await claim.take(link, {"default": 10}, {"noop": 8}, factories.WORKER, 30)


async def renew(link: Link, _engine: AsyncEngine, id: UUID) -> None:
    await link.fetch(sql.RENEW, [id], [1], 9999.0)


def finish(state: State) -> Verb:
    async def finish(link: Link, _engine: AsyncEngine, id: UUID) -> None:
        await claim.settle(link, [(held(id), Finished(state))])

    return finish


async def postpone(link: Link, _engine: AsyncEngine, id: UUID) -> None:
    await claim.settle(link, [(held(id), Postponed(9))])


async def rescue(link: Link, _engine: AsyncEngine, _id: UUID) -> None:
    await link.fetch(sql.RESCUE, MAX_LOST, 10, [])


async def cancel(_link: Link, engine: AsyncEngine, id: UUID) -> None:
    async with AsyncSession(engine) as session, session.begin():
        await control.cancel(session, id)


async def requeue(_link: Link, engine: AsyncEngine, id: UUID) -> None:
    async with AsyncSession(engine) as session, session.begin():
        await control.requeue(session, id)


VERBS: dict[str, list[Verb]] = {
    "claim": [take],
    "renew": [renew],
    "finish": [finish(state) for state in sorted(TERMINAL)],
    "postpone": [postpone],
    "rescue": [rescue],
    "cancel": [cancel],
    "requeue": [requeue],
}

KINDS: dict[State, list[tuple[str, dict[str, Any]]]] = {
    State.PENDING: [("pending", {"fence": 1})],
    State.RUNNING: [
        ("expired", {}),
        ("expired", {"lost": MAX_LOST - 1}),
        ("expired", {"cancel_requested_at": ago(1)}),
    ],
    State.SUCCEEDED: [("succeeded", {})],
    State.FAILED: [("failed", {})],
    State.CANCELLED: [("cancelled", {})],
}


def test_every_verb_and_every_state_is_tried() -> None:
    assert VERBS.keys() == TRANSITIONS.keys()
    assert KINDS.keys() == set(State)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("state", State)
async def test_only_legal_moves_move(engine: AsyncEngine, link: Link, state: State, verb: str) -> None:
    reached: set[State] = set()
    for perform in VERBS[verb]:
        for kind, columns in KINDS[state]:
            id = await plant(engine, kind, **columns)
            before = await factories.read(engine, id)
            assert before.state is state
            if verb in ("cancel", "requeue") and state not in TRANSITIONS[verb]:
                with pytest.raises(IllegalTransition) as caught:
                    await perform(link, engine, id)
                assert (caught.value.id, caught.value.verb, caught.value.state) == (id, verb, state)
                assert set(caught.value.allowed) == set(TRANSITIONS[verb])
            else:
                await perform(link, engine, id)
            after = await factories.read(engine, id)
            if state in TRANSITIONS[verb]:
                assert after != before or before.cancel_requested_at is not None
                reached.add(after.state)
            else:
                assert after == before
            await _forget(engine, id)
    allowed = TRANSITIONS[verb].get(state, frozenset())
    if verb == "postpone" and state is State.RUNNING:
        allowed |= {State.CANCELLED}  # a cancel request turns it into a finish
    assert reached == allowed


@pytest.mark.parametrize("verb", sorted(VERBS.keys() - {"claim", "rescue"}))  # those take whatever is due
@pytest.mark.parametrize("state", State)
async def test_no_move_touches_another_job(engine: AsyncEngine, link: Link, state: State, verb: str) -> None:
    bystanders = [
        await plant(engine, kind, **{"fence": 1, **columns}) for kinds in KINDS.values() for kind, columns in kinds
    ]
    before = [await factories.read(engine, id) for id in bystanders]
    kind, columns = KINDS[state][0]
    id = await plant(engine, kind, **columns)
    with contextlib.suppress(IllegalTransition):
        await VERBS[verb][0](link, engine, id)
    after: list[Job] = [await factories.read(engine, id) for id in bystanders]
    assert after == before


async def _forget(engine: AsyncEngine, id: UUID) -> None:
    async with engine.begin() as connection:
        await connection.execute(delete(live_job).where(live_job.c.id == id))
        await connection.execute(delete(finished_job).where(finished_job.c.id == id))


@pytest.mark.parametrize(
    ("broken", "constraint"),
    [
        ({"state": "running"}, "live_job_lease"),
        pytest.param({"lease_until": ago(-60)}, "live_job_lease", id="a lease while it waits"),
        ({"priority": 4}, "live_job_priority"),
        ({"priority": -1}, "live_job_priority"),
        ({"task": ""}, "live_job_names"),
        ({"queue": "x" * 201}, "live_job_names"),
        ({"attempt": -1}, "live_job_counts"),
        ({"lost": -1}, "live_job_counts"),
        ({"fence": -1}, "live_job_counts"),
        ({"max_attempts": 0}, "live_job_counts"),
        ({"payload": [1]}, "live_job_payload"),
        ({"errors": {}}, "live_job_errors"),
        ({"tags": "vip"}, "live_job_tags"),
    ],
    ids=str,
)
async def test_half_a_state_cannot_be_stored(engine: AsyncEngine, broken: dict[str, Any], constraint: str) -> None:
    with pytest.raises(Exception, match=f'violates check constraint "{constraint}"'):
        await plant(engine, **broken)


@pytest.mark.parametrize("state", ["done", "succeeded", "RUNNING", ""])
async def test_a_state_that_is_none_cannot_be_stored(db: asyncpg.Connection, state: str) -> None:
    with pytest.raises(asyncpg.CheckViolationError, match="live_job_state"):
        await db.execute("insert into outbox.live_job (task, state) values ('noop', $1)", state)
    if state != "succeeded":
        with pytest.raises(asyncpg.CheckViolationError, match="finished_job_state"):
            await db.execute(
                "insert into outbox.finished_job (id, task, state) values (gen_random_uuid(), 'noop', $1)", state
            )


async def test_a_finished_job_has_no_lease(engine: AsyncEngine) -> None:
    with pytest.raises(Exception, match="finished_job_lease"):
        await plant(engine, "succeeded", lease_until=ago(-60))
