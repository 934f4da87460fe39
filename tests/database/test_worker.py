"""A worker in this process, on a real database: what is committed runs, and every end is written down."""

import asyncio
import contextlib
import threading
import time
from contextvars import ContextVar
from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from outbox import INJECTED, Cancel, Job, JobContext, Outbox, Retry, Snooze, State, control, listener
from outbox.errors import DeclarationError, SchemaMismatch
from outbox.wakeup import Notifier
from outbox.worker import Worker
from tests import factories
from tests.database.workers import drained, in_state, settings, working
from tests.factories import ago, plant, plant_many, read
from tests.waiting import eventually, until

AT_ONCE = Retry(max_attempts=3, base=0, cap=0)


class Tasks:
    """Handlers that can be watched and held."""

    def __init__(self) -> None:
        self.outbox = Outbox()
        self.started: list[UUID] = []
        self.ended: list[UUID] = []
        self.cancelled: list[UUID] = []
        self.go = asyncio.Event()
        self.most = 0
        outbox = self.outbox

        @outbox.task(retry=AT_ONCE)
        async def noop(n: int = 0) -> dict[str, int]:
            return {"n": n}

        @outbox.task(retry=AT_ONCE)
        async def hold(n: int = 0, *, ctx: JobContext = INJECTED) -> str:
            self.started.append(ctx.id)
            self.most = max(self.most, len(self.started) - len(self.ended) - len(self.cancelled))
            try:
                await self.go.wait()
            except asyncio.CancelledError:
                self.cancelled.append(ctx.id)
                raise
            self.ended.append(ctx.id)
            return "held"

        @outbox.task(retry=AT_ONCE)
        async def boom() -> None:
            raise ValueError("boom")

        self.noop, self.hold, self.boom = noop, hold, boom


@pytest.fixture
def tasks() -> Tasks:
    return Tasks()


# Running.


async def test_what_was_committed_runs(
    engine: AsyncEngine, database_url: str, sessions: async_sessionmaker[AsyncSession], tasks: Tasks
) -> None:
    async with working(tasks.outbox, database_url):
        async with sessions() as session, session.begin():
            job = tasks.noop.enqueue(session, 42)
        async with sessions() as session:
            tasks.noop.enqueue(session, 43)
            await session.flush()  # and never committed
        await in_state(engine, job.id, State.SUCCEEDED)
    row = await read(engine, job.id)
    assert (row.result, row.attempt, row.fence, row.errors) == ({"n": 42}, 1, 1, [])
    assert row.created_at <= row.started_at <= row.finished_at  # type: ignore[operator]
    assert await factories.count(engine) == 1


async def test_every_one_of_thousands_runs_once(engine: AsyncEngine, database_url: str) -> None:
    outbox, runs = Outbox(), dict[int, int]()

    @outbox.task()
    async def noop(n: int) -> None:
        runs[n] = runs.get(n, 0) + 1

    await plant_many(engine, 3000)
    async with working(outbox, database_url), working(outbox, database_url):
        await drained(engine)
    assert runs == dict.fromkeys(range(1, 3001), 1)
    assert await factories.count(engine, "succeeded") == 3000


async def test_a_plain_function_runs_in_a_thread(engine: AsyncEngine, database_url: str) -> None:
    outbox, seen = Outbox(), list[int]()

    @outbox.task()
    def noop() -> str:
        seen.append(threading.get_ident())
        return "from a thread"

    id = await plant(engine)
    async with working(outbox, database_url):
        await drained(engine)
    assert (await read(engine, id)).result == "from a thread"
    assert seen != [threading.get_ident()]


async def test_failures_are_retried_by_the_policy_and_then_the_job_fails(
    engine: AsyncEngine, database_url: str, tasks: Tasks
) -> None:
    id = await plant(engine, task="boom")
    async with working(tasks.outbox, database_url):
        await in_state(engine, id, State.FAILED)
    job = await read(engine, id)
    assert (job.attempt, job.fence) == (3, 3)
    assert [(error["attempt"], error["fence"]) for error in job.errors] == [(1, 1), (2, 2), (3, 3)]
    assert {(error["type"], error["message"]) for error in job.errors} == {("ValueError", "boom")}
    assert "raise ValueError" in job.errors[0]["traceback"]


async def test_the_rows_own_limit_of_attempts_rules(engine: AsyncEngine, database_url: str, tasks: Tasks) -> None:
    id = await plant(engine, task="boom", max_attempts=1)
    async with working(tasks.outbox, database_url):
        await in_state(engine, id, State.FAILED)
    assert (await read(engine, id)).attempt == 1


async def test_a_failed_attempt_waits_as_long_as_the_policy_says(
    engine: AsyncEngine, database_url: str, db: asyncpg.Connection
) -> None:
    outbox = Outbox()

    @outbox.task(retry=Retry(base=1000, jitter=0, factor=3, cap=5000))
    async def noop() -> None:
        raise ValueError

    ids = [await plant(engine, attempt=attempt) for attempt in range(4)]
    async with working(outbox, database_url):

        async def all_failed_once() -> bool:
            return all([(await read(engine, id)).errors for id in ids])

        await eventually(all_failed_once)
    for id, expected in zip(ids, (1000, 3000, 5000, 5000), strict=True):
        job = await read(engine, id)
        waits = await db.fetchval("select extract(epoch from $1 - $2::timestamptz)", job.run_at, job.started_at)
        assert expected <= waits < expected + 100
        assert (job.state, len(job.errors)) == (State.PENDING, 1)


async def test_a_snooze_and_retry_after_charge_no_attempt(engine: AsyncEngine, database_url: str) -> None:
    outbox, runs = Outbox(), dict[str, list[tuple[int, int]]]()

    def note(ctx: JobContext) -> int:
        runs.setdefault(ctx.task, []).append((ctx.attempt, ctx.fence))
        return len(runs[ctx.task])

    @outbox.task(retry=1)
    async def snoozes(*, ctx: JobContext = INJECTED) -> str | Snooze:
        return Snooze(0) if note(ctx) < 4 else "done"

    @outbox.task(retry=1)
    async def told_to_wait(*, ctx: JobContext = INJECTED) -> str:
        if note(ctx) < 4:
            raise Retry.after(0, "429")
        return "done"

    snoozed, waited = await plant(engine, task="snoozes"), await plant(engine, task="told_to_wait")
    async with working(outbox, database_url):
        await drained(engine)
    assert set(runs) == {"snoozes", "told_to_wait"}
    assert all(each == [(1, 1), (1, 2), (1, 3), (1, 4)] for each in runs.values())
    for id, errors in ((snoozed, 0), (waited, 3)):
        job = await read(engine, id)
        assert (job.state, job.attempt, job.result, len(job.errors)) == (State.SUCCEEDED, 1, "done", errors)


async def test_a_handler_may_cancel_its_own_job(engine: AsyncEngine, database_url: str) -> None:
    outbox = Outbox()

    @outbox.task()
    async def noop() -> None:
        raise Cancel("not wanted")

    id = await plant(engine)
    async with working(outbox, database_url):
        await in_state(engine, id, State.CANCELLED)
    job = await read(engine, id)
    assert [error["message"] for error in job.errors] == ["not wanted"]


async def test_a_job_runs_when_its_time_has_come(
    engine: AsyncEngine, database_url: str, db: asyncpg.Connection, tasks: Tasks
) -> None:
    later = await plant(engine, run_at=ago(-0.3))
    never = await plant(engine, "scheduled")
    async with working(tasks.outbox, database_url):
        await in_state(engine, later, State.SUCCEEDED)
    assert await db.fetchval("select started_at >= run_at from outbox.job where id = $1", later)
    assert (await read(engine, never)).fence == 0


async def test_tasks_that_nobody_knows_wait_in_peace(engine: AsyncEngine, database_url: str, tasks: Tasks) -> None:
    unknown = await plant(engine, task="of_another_release", run_at=ago(100), priority=3)
    known = await plant(engine)
    async with working(tasks.outbox, database_url):
        await in_state(engine, known, State.SUCCEEDED)
    job = await read(engine, unknown)
    assert (job.state, job.fence) == (State.PENDING, 0)


async def test_only_its_queues_are_worked_on(engine: AsyncEngine, database_url: str, tasks: Tasks) -> None:
    mail, other = await plant(engine, queue="mail"), await plant(engine, queue="other")
    async with working(tasks.outbox, database_url, queues={"mail": 1, "idle": 1}):
        await in_state(engine, mail, State.SUCCEEDED)
    assert (await read(engine, other)).state is State.PENDING


UNDECODABLE = {
    "too-deep": "jsonb_build_object('n', (repeat('[', 5000) || repeat(']', 5000))::jsonb)",
    "too-many-digits": "jsonb_build_object('n', repeat('9', 5000)::numeric)",
    "wrong-type": """'{"n": "not a number"}'::jsonb""",
}


@pytest.mark.parametrize("bad", UNDECODABLE)
async def test_a_row_that_cannot_be_decoded_fails_alone(
    engine: AsyncEngine, database_url: str, db: asyncpg.Connection, tasks: Tasks, bad: str
) -> None:
    await plant_many(engine, 50)
    unlucky = await plant(engine, max_attempts=1, payload=text(UNDECODABLE[bad]), run_at=ago(20))
    await plant_many(engine, 50)
    async with working(tasks.outbox, database_url):
        await drained(engine)
    assert await factories.count(engine, "succeeded") == 100
    row = await db.fetchrow("select state, errors->0->>'type' as type from outbox.job where id = $1", unlucky)
    assert tuple(row) == ("failed", "outbox.errors.PayloadInvalid")


async def test_a_result_that_cannot_be_stored_does_not_undo_the_success(engine: AsyncEngine, database_url: str) -> None:
    outbox = Outbox()

    @outbox.task()
    async def noop(n: int) -> Any:
        return object() if n == 7 else {"text": "nul \0, half \ud800, whole \U0001f600", "nan": float("nan")}

    await plant_many(engine, 20)
    async with working(outbox, database_url):
        await drained(engine)
    jobs = await factories.read_all(engine)
    assert {job.state for job in jobs} == {State.SUCCEEDED}
    for job in jobs:
        if job.payload["n"] == 7:
            assert job.result is None
            assert [error["type"] for error in job.errors] == ["outbox.errors.ResultNotStored"]
        else:
            assert job.errors == []
            assert "whole \U0001f600" in job.result["text"]


# Slots.


async def test_no_more_jobs_run_at_once_than_there_are_slots(
    engine: AsyncEngine, database_url: str, tasks: Tasks
) -> None:
    await plant_many(engine, 12, task="hold")
    async with working(tasks.outbox, database_url, queues={"default": 3}):
        await until(lambda: len(tasks.started) == 3)
        tasks.go.set()
        await drained(engine)
    assert tasks.most == 3
    assert len(tasks.ended) == 12


async def test_slow_jobs_are_not_hoarded(engine: AsyncEngine, database_url: str, tasks: Tasks) -> None:
    await plant_many(engine, 50, task="hold")
    async with working(tasks.outbox, database_url, queues={"default": 4, "ticks": 1}):
        await until(lambda: len(tasks.started) == 4)
        for _ in range(5):  # the worker goes on claiming meanwhile
            await in_state(engine, await plant(engine, queue="ticks"), State.SUCCEEDED)
            assert await factories.count(engine, "running") == 4
        tasks.go.set()
        await drained(engine)


async def test_a_busy_queue_does_not_take_the_slots_of_another(
    engine: AsyncEngine, database_url: str, tasks: Tasks
) -> None:
    await plant_many(engine, 20, task="hold", queue="slow", priority=3)
    quick = await plant(engine, queue="quick", priority=0)
    async with working(tasks.outbox, database_url, queues={"slow": 2, "quick": 1}):
        await until(lambda: len(tasks.started) == 2)
        await in_state(engine, quick, State.SUCCEEDED)
        tasks.go.set()


async def test_claims_stuck_behind_slow_jobs_are_handed_to_others(
    engine: AsyncEngine, database_url: str, tasks: Tasks
) -> None:
    await plant_many(engine, 400, ago=60.0)
    await plant_many(engine, 4, task="hold", ago=30.0)
    await plant_many(engine, 40, ago=10.0)
    async with working(tasks.outbox, database_url, queues={"default": 4}):
        await until(lambda: len(tasks.started) == 4)
        async with working(tasks.outbox, database_url, queues={"default": 4}):

            async def only_the_held_are_left() -> bool:
                return await factories.count(engine, "succeeded") == 440

            await eventually(only_the_held_are_left)
            tasks.go.set()
    # Handed back, not failed: no attempt was charged for the detour.
    assert {job.attempt for job in await factories.read_all(engine) if job.state is State.SUCCEEDED} == {1}


# Stopping.


async def test_a_stop_hands_back_what_has_not_started_and_lets_the_rest_end(
    engine: AsyncEngine, database_url: str, tasks: Tasks
) -> None:
    await plant_many(engine, 200, ago=60.0)
    await plant_many(engine, 2, task="hold", ago=30.0)
    await plant_many(engine, 30, task="hold", ago=10.0)
    async with working(tasks.outbox, database_url, queues={"default": 2}) as (worker, running):
        await until(lambda: len(tasks.started) == 2)
        worker.stop()

        async def handed_back() -> bool:
            return await factories.count(engine, "running") == 2

        await eventually(handed_back)
        assert not running.done()
        tasks.go.set()
        assert await running is True
    assert len(tasks.started) == len(tasks.ended) == 2
    assert await factories.count(engine, "succeeded") == 202
    waiting = [job for job in await factories.read_all(engine) if job.state is State.PENDING]
    assert len(waiting) == 30
    assert {(job.attempt, job.lease_until, len(job.errors)) for job in waiting} == {(0, None, 0)}


async def test_after_the_grace_period_running_jobs_are_cancelled_and_handed_back(
    engine: AsyncEngine, database_url: str, tasks: Tasks
) -> None:
    id = await plant(engine, task="hold")
    async with working(tasks.outbox, database_url, grace=0.0) as (worker, running):
        await until(lambda: tasks.started)
        worker.stop()
        assert await running is True
    assert tasks.cancelled == [id]
    job = await read(engine, id)
    assert (job.state, job.attempt, job.fence, job.errors) == (State.PENDING, 0, 1, [])
    async with working(tasks.outbox, database_url):
        tasks.go.set()
        await in_state(engine, id, State.SUCCEEDED)


async def test_a_second_stop_ends_the_grace_period(engine: AsyncEngine, database_url: str, tasks: Tasks) -> None:
    id = await plant(engine, task="hold")
    async with working(tasks.outbox, database_url, grace=3600.0) as (worker, running):
        await until(lambda: tasks.started)
        worker.stop()
        worker.stop()
        assert await running is True
    assert (await read(engine, id)).state is State.PENDING


async def test_a_handler_that_will_not_go_is_left_behind_and_its_job_handed_back(
    engine: AsyncEngine, database_url: str
) -> None:
    outbox, started, release = Outbox(), asyncio.Event(), asyncio.Event()

    @outbox.task()
    async def noop() -> str:
        started.set()
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()
        return "too late"

    id = await plant(engine)
    worker = Worker(outbox, database_url, settings(grace=0.0, cancel_grace=0.0))
    running = asyncio.create_task(worker.run())
    await asyncio.wait_for(started.wait(), 30)
    worker.stop()
    assert await asyncio.wait_for(running, 30) is False
    job = await read(engine, id)
    assert (job.state, job.attempt) == (State.PENDING, 0)
    release.set()
    await asyncio.sleep(0)
    assert (await read(engine, id)).result is None


async def test_an_idle_worker_stops_at_once(database_url: str, tasks: Tasks) -> None:
    async with working(tasks.outbox, database_url, poll_max=60.0, grace=3600.0) as (worker, running):
        await asyncio.sleep(0)
        worker.stop()
        assert await asyncio.wait_for(running, 20) is True


# Cancelling.


async def test_a_person_cancels_a_running_job(
    engine: AsyncEngine, database_url: str, session: AsyncSession, tasks: Tasks
) -> None:
    id, other = await plant(engine, task="hold"), await plant(engine, task="hold")
    async with working(tasks.outbox, database_url):
        await until(lambda: len(tasks.started) == 2)
        asked = await control.cancel(session, id)
        await session.commit()
        assert asked.state is State.RUNNING
        assert asked.cancel_requested_at is not None
        await in_state(engine, id, State.CANCELLED)
        tasks.go.set()
        await in_state(engine, other, State.SUCCEEDED)
    assert tasks.cancelled == [id]
    assert (await read(engine, id)).fence == 1


async def test_a_thread_sees_that_it_was_cancelled(
    engine: AsyncEngine, database_url: str, session: AsyncSession
) -> None:
    outbox, started, give_up = Outbox(), threading.Event(), threading.Event()

    @outbox.task()
    def noop(*, ctx: JobContext = INJECTED) -> str:
        started.set()
        while not ctx.cancelled and not give_up.wait(0.01):
            pass
        return "late"

    id = await plant(engine)
    try:
        async with working(outbox, database_url):
            await until(started.is_set)
            await control.cancel(session, id)
            await session.commit()
            await in_state(engine, id, State.CANCELLED)
    finally:
        give_up.set()
    assert (await read(engine, id)).result is None


async def test_a_cancelled_job_that_waits_for_a_slot_never_starts(
    engine: AsyncEngine, database_url: str, session: AsyncSession, tasks: Tasks
) -> None:
    await plant_many(engine, 300, ago=60.0)
    await plant_many(engine, 1, task="hold", ago=30.0)
    waiting = [await plant(engine, task="hold", run_at=ago(10)) for _ in range(5)]
    async with working(tasks.outbox, database_url, queues={"default": 1}):
        await until(lambda: tasks.started)
        for id in waiting:
            await control.cancel(session, id)
        await session.commit()
        for id in waiting:
            await in_state(engine, id, State.CANCELLED)
        tasks.go.set()
        await drained(engine)
    assert not set(waiting) & set(tasks.started)


# Leases and progress.


async def test_a_lost_lease_stops_the_attempt_and_its_outcome_is_not_written(
    engine: AsyncEngine, database_url: str, db: asyncpg.Connection, tasks: Tasks
) -> None:
    id = await plant(engine, task="hold")
    async with working(tasks.outbox, database_url, lease=1.0):
        await until(lambda: tasks.started)
        await db.execute("update outbox.live_job set fence = fence + 1, worker_id = gen_random_uuid()")
        await until(lambda: tasks.cancelled)
    job = await read(engine, id)
    assert (job.state, job.fence, job.attempt) == (State.RUNNING, 2, 0)


async def test_a_claim_whose_lease_was_lost_before_it_started_never_starts(
    engine: AsyncEngine, database_url: str, db: asyncpg.Connection, tasks: Tasks
) -> None:
    await plant_many(engine, 300, ago=60.0)
    await plant_many(engine, 1, task="hold", ago=30.0)
    waiting = [await plant(engine, task="hold", run_at=ago(10)) for _ in range(5)]
    async with working(tasks.outbox, database_url, queues={"default": 1}, lease=1.0):
        await until(lambda: tasks.started)
        lost = {
            row["id"]
            for row in await db.fetch(
                """
                update outbox.live_job set fence = fence + 1, worker_id = gen_random_uuid()
                where id = any ($1) and state = 'running' returning id
                """,
                waiting,
            )
        }
        assert lost
        seen = await db.fetchval("select max(lease_until) from outbox.live_job where id = $1", tasks.started[0])

        async def a_heartbeat_has_seen_it() -> bool:
            query = "select lease_until > $2 from outbox.live_job where id = $1"
            return bool(await db.fetchval(query, tasks.started[0], seen))

        await eventually(a_heartbeat_has_seen_it)
        tasks.go.set()

        async def only_the_lost_live() -> bool:
            return await factories.count(engine, "running") == len(lost)

        await eventually(only_the_lost_live)
    assert not lost & set(tasks.started)


async def test_a_lease_is_renewed_though_a_handler_blocks_the_event_loop(
    engine: AsyncEngine, database_url: str, db: asyncpg.Connection
) -> None:
    outbox = Outbox()
    leases: list[Any] = []

    @outbox.task()
    async def noop(*, ctx: JobContext = INJECTED) -> int:
        # Blocks the loop on purpose, until the heartbeat's thread has renewed the lease three times.
        import psycopg

        from outbox.connection import dsn

        with psycopg.connect(dsn(database_url), autocommit=True) as look:
            deadline = time.monotonic() + 30
            while len(set(leases)) < 4 and time.monotonic() < deadline:
                row = look.execute(
                    "select lease_until from outbox.live_job where id = %s and fence = %s", (ctx.id, ctx.fence)
                ).fetchone()
                leases.append(row and row[0])
        return ctx.fence

    id = await plant(engine)
    async with working(outbox, database_url, lease=1.0):
        await in_state(engine, id, State.SUCCEEDED)
    assert None not in leases
    assert len(set(leases)) == 4
    assert sorted(set(leases)) == list(dict.fromkeys(leases))
    assert (await read(engine, id)).fence == 1


async def test_jobs_of_a_dead_worker_are_run_by_another(engine: AsyncEngine, database_url: str, tasks: Tasks) -> None:
    id = await plant(engine, "expired", fence=5)
    async with working(tasks.outbox, database_url, lease=1.0):
        await in_state(engine, id, State.SUCCEEDED)
    job = await read(engine, id)
    assert (job.fence, job.lost, job.attempt) == (6, 1, 1)
    assert [error["type"] for error in job.errors] == ["outbox.WorkerLost"]


async def test_progress_can_be_read_while_the_job_runs(
    engine: AsyncEngine, database_url: str, db: asyncpg.Connection
) -> None:
    outbox, go = Outbox(), asyncio.Event()

    @outbox.task()
    async def noop(*, ctx: JobContext = INJECTED) -> None:
        ctx.progress(3, 10, "three \0 of ten")
        await go.wait()
        ctx.progress(10, 10)

    id = await plant(engine)
    async with working(outbox, database_url, lease=1.0):

        async def said() -> dict[str, Any] | None:
            return (await read(engine, id)).progress

        assert await eventually(said) == {"done": 3, "total": 10, "message": "three � of ten"}
        go.set()
        await in_state(engine, id, State.SUCCEEDED)
    assert (await read(engine, id)).progress == {"done": 10, "total": 10, "message": None}


# Being woken.


async def test_a_hint_wakes_a_worker_that_hardly_polls(
    engine: AsyncEngine,
    database_url: str,
    db: asyncpg.Connection,
    sessions: async_sessionmaker[AsyncSession],
    tasks: Tasks,
) -> None:
    async with (
        Notifier(engine),
        working(tasks.outbox, database_url, wake_up=True, poll_min=60.0, poll_max=60.0, queues={"default": 1}),
    ):

        async def listens() -> bool:
            query = "select exists (select from pg_stat_activity where application_name = 'outbox listener')"
            return bool(await db.fetchval(query))

        await eventually(listens)
        for n in range(3):
            async with sessions() as session, session.begin():
                job = tasks.noop.enqueue(session, n)
            await in_state(engine, job.id, State.SUCCEEDED)


async def test_polling_alone_finds_every_job(
    engine: AsyncEngine, database_url: str, sessions: async_sessionmaker[AsyncSession], tasks: Tasks
) -> None:
    async with working(tasks.outbox, database_url, wake_up=False):
        for n in range(3):
            async with sessions() as session, session.begin():
                job = tasks.noop.enqueue(session, n)
            await in_state(engine, job.id, State.SUCCEEDED)


async def test_the_listener_comes_back_when_its_connection_is_lost(
    engine: AsyncEngine,
    database_url: str,
    db: asyncpg.Connection,
    sessions: async_sessionmaker[AsyncSession],
    tasks: Tasks,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listener, "PING", 0.1)
    listeners = "select pid from pg_stat_activity where application_name = 'outbox listener' and query ~* '^select 1'"
    async with (
        Notifier(engine),
        working(tasks.outbox, database_url, wake_up=True, poll_min=60.0, poll_max=60.0, queues={"default": 1}),
    ):
        first = await eventually(lambda: db.fetchval(listeners))
        await db.execute("select pg_terminate_backend($1)", first)
        await eventually(lambda: db.fetchval(f"{listeners} and pid <> $1", first))
        for _ in range(2):
            async with sessions() as session, session.begin():
                job = tasks.noop.enqueue(session)
            await in_state(engine, job.id, State.SUCCEEDED)


async def test_a_worker_goes_on_when_all_its_connections_are_lost(
    engine: AsyncEngine, database_url: str, db: asyncpg.Connection, tasks: Tasks
) -> None:
    async with working(tasks.outbox, database_url, wake_up=True):
        for _ in range(3):
            await in_state(engine, await plant(engine), State.SUCCEEDED)
            await db.fetch("select pg_terminate_backend(pid) from pg_stat_activity where application_name ~ '^outbox'")


# Starting.


async def test_an_outbox_without_tasks_is_refused(database_url: str) -> None:
    with pytest.raises(DeclarationError, match="no tasks"):
        Worker(Outbox(), database_url)


async def test_a_database_without_the_schema_is_refused(
    database_url: str, db: asyncpg.Connection, tasks: Tasks
) -> None:
    await db.execute("drop schema outbox cascade")
    with pytest.raises(SchemaMismatch, match="version 0"):
        await asyncio.wait_for(Worker(tasks.outbox, database_url, settings()).run(), 30)


async def test_an_older_schema_is_refused(database_url: str, db: asyncpg.Connection, tasks: Tasks) -> None:
    await db.execute("delete from outbox.schema_version")
    with pytest.raises(SchemaMismatch):
        await asyncio.wait_for(Worker(tasks.outbox, database_url, settings()).run(), 30)


async def test_what_the_database_refuses_a_heartbeat_keeps_no_lease_from_being_renewed(
    engine: AsyncEngine, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    outbox, go_on = Outbox(), asyncio.Event()
    runs: list[int] = []

    @outbox.task()
    async def step(*, ctx: JobContext = INJECTED) -> None:
        runs.append(ctx.fence)
        await go_on.wait()

    id = await plant(engine, task="step")
    async with engine.begin() as connection:
        for table in ("worker", "backlog"):
            await connection.execute(text(f"alter table outbox.{table} rename to gone_{table}"))
    async with working(outbox, database_url, lease=1.0):
        first = (await _running(engine, id)).lease_until

        async def renewed() -> bool:
            lease = (await read(engine, id)).lease_until
            return lease is not None and first is not None and lease > first + timedelta(seconds=2)

        await eventually(renewed)
        go_on.set()
        await drained(engine)
    assert runs == [1]
    refused = [record.getMessage() for record in caplog.records if "duty_failed" in record.getMessage()]
    assert any("appear" in each and "UndefinedTableError" in each for each in refused)
    assert "database_lost" not in caplog.text


async def _running(engine: AsyncEngine, id: UUID) -> Job:
    await in_state(engine, id, State.RUNNING)
    return await read(engine, id)


async def test_what_a_handler_sets_in_its_context_does_not_reach_the_next_job(
    engine: AsyncEngine, database_url: str
) -> None:
    outbox, customer, seen = Outbox(), ContextVar("customer", default=0), []

    @outbox.task()
    async def handle(n: int) -> None:
        seen.append(customer.get())
        customer.set(n)

    await plant_many(engine, 500, task="handle")  # so many that claims wait, and the end of one job starts the next
    async with working(outbox, database_url, queues={"default": 1}):
        await drained(engine)
    assert seen == [0] * 500
