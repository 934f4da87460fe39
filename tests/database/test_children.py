"""Isolated tasks in a real worker: what happens to their processes, and what their rows say of it."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import psutil
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from outbox import Outbox, State, control
from outbox.errors import DeclarationError
from outbox.worker import Worker
from tests import isolated
from tests.database.workers import drained, in_state, settings, working
from tests.factories import plant, read
from tests.waiting import eventually, until

ROOT = Path(__file__).parents[2]


def is_gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


async def plant_waiting(engine: AsyncEngine, told: Path) -> UUID:
    return await plant(engine, task="waits", payload={"told": str(told)}, max_attempts=3)


async def begun(told: Path) -> int:
    """The process in which the handler has begun."""
    await until(lambda: pid_in(told))
    return pid_in(told)


def pid_in(told: Path) -> int:
    return int(told.read_text() or 0) if told.exists() else 0


@asynccontextmanager
async def worker_process(url: str, *options: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A worker started from the command line."""
    command = [sys.executable, "-m", "outbox", "worker", "tests.isolated:outbox", "--lease", "2", *options]
    environment = {**os.environ, "DATABASE_URL": url}
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=environment)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_isolated_jobs_run_and_their_processes_end_with_the_worker(
    engine: AsyncEngine, database_url: str
) -> None:
    ids = [await plant(engine, task="who") for _ in range(20)]
    async with working(isolated.outbox, database_url, queues={"default": 2}):
        await drained(engine)
    jobs = [await read(engine, id) for id in ids]
    assert {job.state for job in jobs} == {State.SUCCEEDED}
    pids = {job.result for job in jobs}
    assert 1 <= len(pids) <= 2
    assert all(map(is_gone, pids))


async def test_a_process_that_dies_fails_its_attempt_and_not_the_worker(engine: AsyncEngine, database_url: str) -> None:
    dead = await plant(engine, task="dies", payload={"how": "segfault"}, max_attempts=1)
    async with working(isolated.outbox, database_url):
        await in_state(engine, dead, State.FAILED)
        await in_state(engine, await plant(engine, task="who"), State.SUCCEEDED)
    [error] = (await read(engine, dead)).errors
    assert (error["type"], error["message"]) == (
        "outbox.errors.ChildDied",
        "the child process was killed by SIGSEGV",
    )


async def test_a_handler_beyond_its_limit_has_failed_and_runs_no_more(
    engine: AsyncEngine, database_url: str, tmp_path: Path
) -> None:
    told = tmp_path / "told"
    payload = {"how": "spins", "told": str(told)}
    id = await plant(engine, task="stubborn_for_a_moment", payload=payload, max_attempts=1)
    async with working(isolated.outbox, database_url):
        await in_state(engine, id, State.FAILED)
        assert is_gone(pid_in(told))
    [error] = (await read(engine, id)).errors
    assert error["type"] == "outbox.errors.AttemptTimeout"


async def test_a_person_cancels_a_running_job_and_its_process_is_killed(
    engine: AsyncEngine, database_url: str, sessions: async_sessionmaker[AsyncSession], tmp_path: Path
) -> None:
    told = tmp_path / "told"
    id = await plant_waiting(engine, told)
    async with working(isolated.outbox, database_url):
        pid = await begun(told)
        async with sessions() as session, session.begin():
            await control.cancel(session, id)
        await in_state(engine, id, State.CANCELLED)
        assert is_gone(pid)


async def test_the_end_of_the_grace_period_kills_and_hands_the_job_back(
    engine: AsyncEngine, database_url: str, tmp_path: Path
) -> None:
    told = tmp_path / "told"
    id = await plant_waiting(engine, told)
    async with working(isolated.outbox, database_url, grace=0):
        pid = await begun(told)
    assert is_gone(pid)
    job = await read(engine, id)
    assert (job.state, job.attempt, job.fence, job.errors) == (State.PENDING, 0, 1, [])


async def test_a_job_within_the_grace_period_ends_in_peace(
    engine: AsyncEngine, database_url: str, tmp_path: Path
) -> None:
    told, go = tmp_path / "told", tmp_path / "go"
    id = await plant(engine, task="gated", payload={"told": str(told), "go": str(go)})
    async with working(isolated.outbox, database_url) as (worker, running):
        await begun(told)
        worker.stop()
        go.touch()
        await running
    assert (await read(engine, id)).result == "went"


async def test_a_lost_lease_kills(
    engine: AsyncEngine, database_url: str, db: asyncpg.Connection, tmp_path: Path
) -> None:
    told = tmp_path / "told"
    id = await plant_waiting(engine, told)
    async with working(isolated.outbox, database_url, lease=1.0):
        pid = await begun(told)
        # As another worker takes it over.
        await db.execute(
            "update outbox.live_job set fence = fence + 1, lease_until = clock_timestamp() + '1 hour' where id = $1", id
        )
        await until(lambda: is_gone(pid))
    assert (await read(engine, id)).state is State.RUNNING


async def test_progress_and_checkpoint_of_a_child_reach_the_row_and_the_next_attempt(
    engine: AsyncEngine, database_url: str, tmp_path: Path
) -> None:
    told = tmp_path / "told"
    id = await plant_waiting(engine, told)
    async with working(isolated.outbox, database_url, grace=0):
        await begun(told)

        async def is_told() -> bool:
            job = await read(engine, id)
            return job.progress is not None and job.progress["done"] == 1 and job.checkpoint == {"at": 7}

        await eventually(is_told)
    assert (await read(engine, id)).checkpoint == {"at": 7}


# The worker as a process of its own.


@pytest.mark.parametrize("how", ["spins", "sleeps-in-c", "ignores-signals"])
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process whose C code holds the interpreter")
async def test_a_worker_that_is_killed_leaves_no_child_behind(
    engine: AsyncEngine, database_url: str, tmp_path: Path, how: str
) -> None:
    told = tmp_path / "told"
    payload: dict[str, Any] = {"how": how, "told": str(told)}
    await plant(engine, task="stubborn", payload=payload)
    async with worker_process(database_url) as worker:
        pid = await begun(told)
        worker.send_signal(signal.SIGKILL)
        await worker.wait()
        await until(lambda: is_gone(pid))


async def test_an_idle_child_ends_when_its_worker_is_killed(engine: AsyncEngine, database_url: str) -> None:
    async with worker_process(database_url) as worker:
        id = await plant(engine, task="who")
        await in_state(engine, id, State.SUCCEEDED)
        pid = (await read(engine, id)).result
        assert not is_gone(pid)
        worker.send_signal(signal.SIGKILL)
        await worker.wait()
        await until(lambda: is_gone(pid))


async def test_a_stop_from_the_command_line_kills_after_the_grace_and_leaves_in_good_order(
    engine: AsyncEngine, database_url: str, tmp_path: Path
) -> None:
    told = tmp_path / "told"
    id = await plant_waiting(engine, told)
    async with worker_process(database_url, "--grace", "0") as worker:
        pid = await begun(told)
        worker.send_signal(signal.SIGTERM)
        assert await worker.wait() == 0
        assert is_gone(pid)
    job = await read(engine, id)
    assert (job.state, job.attempt) == (State.PENDING, 0)


async def test_a_worker_with_an_isolated_task_that_nobody_can_import_does_not_start(database_url: str) -> None:
    outbox = Outbox()

    @outbox.task(isolation="process")
    def hidden() -> None: ...

    with pytest.raises(DeclarationError, match="at module level"):
        Worker(outbox, database_url, settings())
