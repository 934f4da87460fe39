"""A job carries the trace in which it was enqueued, whatever becomes of it, and its handler goes on in it."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from outbox import INJECTED, JobContext, NewJob, Outbox, State, batch, control, maintenance
from outbox import claim as claims
from outbox.batch import Batch, BatchSummary
from outbox.connection import Link
from outbox.context import Claim
from outbox.job import MAX_LOST
from outbox.outcome import RELEASED, Finished, Outcome, Postponed
from tests import factories, isolated
from tests.database.workers import drained, working
from tests.factories import WORKER, read

Sessions = async_sessionmaker[AsyncSession]

tracer = TracerProvider().get_tracer("tests")


@contextmanager
def a_trace() -> Iterator[str]:
    """A span like a request's; gives the id of its trace."""
    with tracer.start_as_current_span("request") as span:
        yield trace.format_trace_id(span.get_span_context().trace_id)


def current() -> str:
    return trace.format_trace_id(trace.get_current_span().get_span_context().trace_id)


outbox = Outbox()


@outbox.task()
async def noop(n: int = 0) -> None: ...


@outbox.task()
async def summarize(batch: BatchSummary) -> None: ...


async def one_traced(sessions: Sessions, **options: Any) -> tuple[UUID, str]:
    async with sessions.begin() as session:
        with a_trace() as known:
            job = noop.options(**options).enqueue(session, 1)
    return job.id, known


async def test_it_is_written_however_jobs_are_enqueued(sessions: Sessions, engine: AsyncEngine) -> None:
    async with sessions.begin() as session:
        with a_trace() as known:
            jobs = [noop.enqueue(session, 1)]
            await session.flush()  # one alone
            jobs += [noop.enqueue(session, 2), noop.options(tags=["a"]).enqueue(session, 3)]
            jobs += [noop.options(key="k").enqueue(session, 4)]
            jobs += await outbox.enqueue_many(session, [noop.job(5), noop.job(6)])
    assert {(await read(engine, job.id)).trace_id for job in jobs} == {known}


async def test_jobs_of_one_statement_keep_theirs_apart(sessions: Sessions, engine: AsyncEngine) -> None:
    jobs: dict[UUID, str | None] = {}
    async with sessions.begin() as session:
        for n in range(3):
            with a_trace() as known:
                jobs[noop.enqueue(session, n).id] = known
        jobs[noop.enqueue(session, 3).id] = None
    assert {id: (await read(engine, id)).trace_id for id in jobs} == jobs


async def test_a_job_that_is_replaced_gets_the_trace_of_what_it_becomes(
    sessions: Sessions, engine: AsyncEngine
) -> None:
    id, _ = await one_traced(sessions, key="k")
    _, known = await one_traced(sessions, key="k", on_conflict="replace")
    (job,) = await factories.read_all(engine)
    assert (job.id, job.trace_id) == (id, known)


async def test_a_job_that_is_kept_keeps_its_own(sessions: Sessions, engine: AsyncEngine) -> None:
    _, known = await one_traced(sessions, key="k")
    await one_traced(sessions, key="k")
    (job,) = await factories.read_all(engine)
    assert job.trace_id == known


async def test_the_sql_door_takes_headers(db: asyncpg.Connection, engine: AsyncEngine) -> None:
    headers = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    id = await db.fetchval("select outbox.enqueue('noop', headers => $1::text::jsonb)", json.dumps(headers))
    assert (await read(engine, id)).trace_id == "0af7651916cd43dd8448eb211c80319c"
    for wrong in ('"a"', "[]", json.dumps({"baggage": "x" * 9000})):
        with pytest.raises(asyncpg.CheckViolationError, match="live_job_headers"):
            await db.execute("select outbox.enqueue('noop', headers => $1::text::jsonb)", wrong)


async def take(link: Link) -> Claim:
    (claim,) = await claims.take(link, {"default": 1}, {"noop": 8}, WORKER, 30.0)
    return claim


@pytest.mark.parametrize("outcome", [RELEASED, Postponed(0, None), Postponed(0, None, charged=True)], ids=repr)
async def test_it_stays_from_one_attempt_to_the_next(
    sessions: Sessions, engine: AsyncEngine, link: Link, outcome: Outcome
) -> None:
    id, known = await one_traced(sessions)
    for _ in range(2):
        claim = await take(link)
        assert known in (claim.headers or "")
        assert await claims.settle(link, [(claim, outcome)]) == []
    assert (await read(engine, id)).trace_id == known


async def finished(link: Link, sessions: Sessions, id: UUID) -> None:
    assert await claims.settle(link, [(await take(link), Finished(State.SUCCEEDED))]) == []


async def finished_here(link: Link, sessions: Sessions, id: UUID) -> None:
    fence = (await take(link)).fence
    assert (await link.fetch("select outbox.finish($1, $2, null, null, null, null) as done", id, fence))[0]["done"]


async def poisoned(link: Link, sessions: Sessions, id: UUID) -> None:
    await take(link)
    await link.fetch(
        "update outbox.live_job set lost = $1, lease_until = now() - interval '1 s' where id = $2 returning id",
        MAX_LOST - 1,
        id,
    )
    await maintenance.rescue(link)


async def cancelled(link: Link, sessions: Sessions, id: UUID) -> None:
    async with sessions.begin() as session:
        await control.cancel(session, id)


async def cancelled_as_one_of_many(link: Link, sessions: Sessions, id: UUID) -> None:
    async with sessions.begin() as session:
        assert (await control.change_many(session, "cancel", [id])).changed == 1


@pytest.mark.parametrize("end", [finished, finished_here, poisoned, cancelled, cancelled_as_one_of_many])
async def test_it_stays_however_a_job_ends(
    sessions: Sessions, engine: AsyncEngine, link: Link, end: Callable[[Link, Sessions, UUID], Any]
) -> None:
    id, known = await one_traced(sessions)
    await end(link, sessions, id)
    job = await read(engine, id)
    assert job.done
    assert job.trace_id == known


async def test_it_stays_when_a_person_has_it_run_again(sessions: Sessions, engine: AsyncEngine, link: Link) -> None:
    id, known = await one_traced(sessions)
    await cancelled(link, sessions, id)
    async with sessions.begin() as session:
        await control.requeue(session, id)
    job = await read(engine, id)
    assert (job.state, job.trace_id) == (State.PENDING, known)


async def test_it_stays_with_those_that_end_because_of_others(
    sessions: Sessions, engine: AsyncEngine, link: Link
) -> None:
    async with sessions.begin() as session:
        first = noop.enqueue(session, 1)
        with a_trace() as known:
            second = noop.options(after=[first]).enqueue(session, 2)
    await cancelled(link, sessions, first.id)
    job = await read(engine, second.id)
    assert (job.state, job.trace_id) == (State.CANCELLED, known)


async def test_a_batch_that_is_cancelled_and_what_it_calls_for_have_it_too(
    sessions: Sessions, engine: AsyncEngine
) -> None:
    async with sessions.begin() as session:
        with a_trace() as known:
            batched = Batch("b", [noop.job(1), noop.job(2)], on_complete=summarize).enqueue(session)
    async with sessions.begin() as session:
        await batch.cancel(session, batched.id)
    jobs = await factories.read_all(engine)
    assert {(job.task, job.state.value, job.trace_id) for job in jobs} == {
        ("noop", "cancelled", known),
        ("summarize", "pending", known),
    }


async def test_handlers_go_on_in_it_and_so_do_the_jobs_that_they_enqueue(
    sessions: Sessions, engine: AsyncEngine, database_url: str
) -> None:
    outbox = Outbox(sessions=sessions)
    seen: dict[str, str] = {}

    @outbox.task()
    async def plain(name: str) -> None:
        seen[name] = current()

    @outbox.task()
    def threaded(name: str) -> None:
        seen[name] = current()

    @outbox.task()
    async def parent(name: str, *, session: AsyncSession = INJECTED, ctx: JobContext = INJECTED) -> None:
        plain.enqueue(session, f"{name}'s child")

    known: dict[str, str] = {}
    async with sessions.begin() as session:
        for task in (plain, threaded, parent):
            with a_trace() as known[task.name]:
                task.enqueue(session, task.name)
        plain.enqueue(session, "untraced")
    async with working(outbox, database_url, queues={"default": 1}):
        await drained(engine)
    assert seen == {
        "plain": known["plain"],
        "threaded": known["threaded"],
        "parent's child": known["parent"],
        "untraced": "0" * 32,
    }
    jobs = [job for job in await factories.read_all(engine) if job.payload["name"].endswith("child")]
    assert [job.trace_id for job in jobs] == [known["parent"]]


async def test_a_handler_in_a_process_goes_on_in_it(sessions: Sessions, engine: AsyncEngine, database_url: str) -> None:
    async with sessions.begin() as session:
        jobs: list[NewJob] = []
        with a_trace() as known:
            jobs.append(isolated.trace.enqueue(session))
        jobs.append(isolated.trace.enqueue(session))
    async with working(isolated.outbox, database_url, queues={"default": 1}):
        await drained(engine)
    assert [(await read(engine, job.id)).result for job in jobs] == [known, "0" * 32]


async def test_headers_that_nobody_can_read_keep_no_job_from_running(
    db: asyncpg.Connection, sessions: Sessions, engine: AsyncEngine, database_url: str
) -> None:
    deep = '{"x": ' + "[" * 2000 + "]" * 2000 + "}"
    ids = [
        await db.fetchval("select outbox.enqueue('noop', headers => $1::text::jsonb, max_attempts => 1)", headers)
        for headers in (deep, '{"traceparent": 7}', '{"baggage": "%%%=;=,;"}', '{"x": ' + "9" * 5000 + "}")
    ]
    async with working(outbox, database_url):
        await drained(engine)
    jobs = [await read(engine, id) for id in ids]
    assert [(job.state, job.trace_id) for job in jobs] == [(State.SUCCEEDED, None)] * 4
