"""SIGTERM: what has not started goes back at once, what runs gets its time, and the process leaves, always."""

import asyncio
import signal
from typing import Any

import pytest

from outbox.cli.console import EXIT_FORCED
from outbox.newjob import NewJob
from outbox.task import Task
from tests.cluster import Cluster
from tests.crash.database import PATIENCE, Database, Report
from tests.crash.handlers import (
    gated,
    gated_and_blocking,
    gated_and_stubborn,
    gated_in_thread,
    tick,
)
from tests.crash.history import must_be_right, steps
from tests.crash.processes import Crew
from tests.waiting import eventually, until

ROUNDS = 10
LONG = 3600.0
"""A grace that no test waits for."""

pytestmark = [pytest.mark.crash, pytest.mark.timeout(180)]


async def moves(database: Database, job: NewJob) -> list[str]:
    """What happened to the job, but for its heartbeats."""
    history = await database.history()
    return [step.move for step in steps(history.changes)[str(job.id)] if step.move != "renew"]


async def test_what_has_not_started_goes_back_at_once(database: Database, crew: Crew, report: Report) -> None:
    """While the first worker gives its running job all the time it needs, others run what it had claimed ahead."""
    for _ in range(5):  # what is claimed ahead and does not start goes back after a second anyway: be there before
        first = await crew.started(slots=1, grace=LONG)
        quick = [tick.job(seconds=0) for _ in range(300)]
        slow = [gated.job() for _ in range(100)]
        await database.enqueue(*quick)
        await database.enqueue(*slow)
        ids = [job.id for job in slow]

        async def slow_ones_are_held() -> bool:
            held = "select count(*) from outbox.live_job where state = 'running' and id = any ($1::text::uuid[])"
            return bool(await database.value(held, "{" + ",".join(map(str, ids)) + "}") > 1)  # noqa: B023

        await eventually(slow_ones_are_held)
        await until(lambda: any(database.started(id) for id in ids))  # noqa: B023
        first.send(signal.SIGTERM)
        await first.reports("worker_stopping")
        (own,) = [job for job in slow if database.started(job.id)]
        for job in slow:
            if job is not own:
                database.open_gate(job.id)
        second = await crew.started(slots=50)
        await until(lambda: all(database.started(id) for id in ids), within=PATIENCE)  # noqa: B023
        others = [run for run in database.runs() if run.job in map(str, ids) and run.job != str(own.id)]
        assert {run.worker for run in others} == {second.name}
        assert first.alive
        database.open_gate(own.id)
        assert await first.leaves() == 0
        await database.comes_to_rest()
        second.kill()
        told = [name for name, _ in first.events()]
        if "jobs_released" in told[told.index("worker_stopping") :]:
            break
    else:
        pytest.fail("void: no worker ever held what it had not started when it was stopped")

    history = await database.history()
    must_be_right(history)
    assert {job.row.attempt for job in history.jobs} == {1}, "a release was charged"
    released = [each for each in steps(history.changes).values() if "postpone" in [step.move for step in each]]
    report(released=len(released))


async def test_running_jobs_get_their_grace(database: Database, crew: Crew) -> None:
    """They end in the worker that had started them, and nothing new is begun."""
    running = [gated.job(), gated_in_thread.job()]
    await database.enqueue(*running)
    worker = await crew.started(grace=LONG)
    await until(lambda: all(database.started(job.id) for job in running))
    worker.send(signal.SIGTERM)
    await worker.reports("worker_stopping")
    late = tick.job(seconds=0)
    await database.enqueue(late)
    for job in running:
        database.open_gate(job.id)
    assert await worker.leaves() == 0
    for job in running:
        assert await moves(database, job) == ["enqueue", "claim", "finish"]
    assert await moves(database, late) == ["enqueue"]
    await crew.started()
    await database.comes_to_rest()
    must_be_right(await database.history())


@pytest.mark.parametrize(
    ("task", "status"),
    [(gated, 0), (gated_in_thread, EXIT_FORCED), (gated_and_stubborn, EXIT_FORCED), (gated_and_blocking, EXIT_FORCED)],
    ids=["obedient", "thread", "stubborn", "blocking"],
)
async def test_handlers_that_do_not_end_are_handed_back(
    database: Database, crew: Crew, task: Task[..., Any], status: int
) -> None:
    """When the grace is over the worker leaves, whatever its handlers do, and their attempts are not charged."""
    job = task.job()
    await database.enqueue(job)
    first = await crew.started(grace=0.5)
    await until(lambda: database.started(job.id, worker=first.name))
    first.send(signal.SIGTERM)
    assert await first.leaves() == status
    assert await moves(database, job) == ["enqueue", "claim", "postpone"]
    row = await database.job(job.id)
    assert (row["attempt"], row["lost"], row["errors"]) == (0, 0, None)

    second = await crew.started()
    await until(lambda: database.started(job.id, worker=second.name))
    database.open_gate(job.id)
    await database.comes_to_rest()
    history = await database.history()
    must_be_right(history)
    assert (history.jobs[0].row.attempt, history.jobs[0].row.fence) == (1, 2)


@pytest.mark.parametrize(
    ("task", "second", "status"),
    [
        (gated, signal.SIGTERM, 0),
        (gated, signal.SIGINT, 0),
        (gated_in_thread, signal.SIGTERM, EXIT_FORCED),
        (gated_and_stubborn, signal.SIGTERM, EXIT_FORCED),
        (gated_and_blocking, signal.SIGTERM, EXIT_FORCED),
    ],
    ids=["obedient", "obedient-SIGINT", "thread", "stubborn", "blocking"],
)
async def test_second_signal_ends_the_grace(
    database: Database, crew: Crew, task: Task[..., Any], second: signal.Signals, status: int
) -> None:
    """With a grace of an hour, the test would not end otherwise."""
    job = task.job()
    await database.enqueue(job)
    worker = await crew.started(grace=LONG)
    await until(lambda: database.started(job.id))
    threads = worker.threads()
    worker.send(signal.SIGTERM)
    # Two signals at once are one. That the first has arrived is told by the log, or if the event loop, which writes
    # it, is blocked, by the thread that looks after that.
    await until(lambda: worker.reported("worker_stopping") or worker.threads() > threads)
    worker.send(second)
    assert await worker.leaves() == status
    assert await moves(database, job) == ["enqueue", "claim", "postpone"]
    assert (await database.job(job.id))["attempt"] == 0


async def test_long_job_survives_any_number_of_stops(database: Database, crew: Crew) -> None:
    """Ten deploys around one job that may be tried three times: it is charged for the run that ended, and no other."""
    job = gated.options(max_attempts=3).job()
    await database.enqueue(job)
    for fence in range(1, ROUNDS + 1):
        worker = await crew.started(grace=0)
        await until(lambda: database.started(job.id, fence=fence), within=PATIENCE)  # noqa: B023
        worker.send(signal.SIGTERM)
        assert await worker.leaves() == 0
    database.open_gate(job.id)
    await crew.started()
    row = await database.reaches(job.id, "succeeded")
    assert (row["attempt"], row["lost"], row["fence"], row["errors"]) == (1, 0, ROUNDS + 1, None)
    must_be_right(await database.history())


async def test_stop_in_every_phase_of_a_job(database: Database, crew: Crew, report: Report) -> None:
    """SIGTERM at any moment of a busy worker: all jobs end, none is charged twice, and nobody waits for a lease."""
    await database.enqueue(*(tick.job(seconds=0.01) for _ in range(400)))
    stops = 0
    for _ in range(ROUNDS):
        worker = await crew.started(slots=8, grace=5)
        await crew.in_the_middle(worker)
        worker.send(signal.SIGTERM)
        assert await worker.leaves() == 0
        stops += 1
        assert await database.value("select count(*) from outbox.live_job where state = 'running'") == 0
        await database.enqueue(*(tick.job(seconds=0.01) for _ in range(50)))
    await crew.started()
    await database.comes_to_rest()
    history = await database.history()
    must_be_right(history)
    assert {(job.row.state, job.row.attempt, job.row.lost) for job in history.jobs} == {("succeeded", 1, 0)}
    report(stops=stops, jobs=len(history.jobs))


@pytest.mark.parametrize("task", [gated, gated_in_thread, gated_and_blocking])
async def test_stop_while_the_database_is_away(
    cluster: Cluster, database: Database, crew: Crew, task: Task[..., Any]
) -> None:
    """The worker leaves. What it could not hand back runs elsewhere when its lease is over."""
    job = task.job()
    await database.enqueue(job)
    worker = await crew.started(grace=0.5)
    await until(lambda: database.started(job.id))
    await asyncio.to_thread(cluster.stop, "immediate")
    await worker.reports("database_lost")
    worker.send(signal.SIGTERM)
    assert await worker.leaves() in (0, EXIT_FORCED)
    await asyncio.to_thread(cluster.start)
    database.open_gate(job.id)
    await crew.started()
    row = await database.reaches(job.id, "succeeded")
    assert (row["attempt"], row["fence"]) == (1, 2)
    must_be_right(await database.history())


async def test_interrupt_from_the_keyboard_stops_in_good_order(database: Database, crew: Crew) -> None:
    job = gated.job()
    await database.enqueue(job)
    worker = await crew.started(grace=LONG)
    await until(lambda: database.started(job.id))
    worker.send(signal.SIGINT)
    await worker.reports("worker_stopping")
    database.open_gate(job.id)
    assert await worker.leaves() == 0
    assert await database.state(job.id) == "succeeded"
    assert "Traceback" not in worker.said()
