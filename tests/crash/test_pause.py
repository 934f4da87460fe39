"""Workers that are held up for longer than their lease: by a SIGSTOP, or by a handler that blocks the event loop."""

import os
import random
import signal

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from outbox import control
from tests.crash.clients import Clients
from tests.crash.database import PATIENCE, Database, Report
from tests.crash.handlers import blocking, gated, gated_in_thread, later_in_thread, tick
from tests.crash.history import count, must_be_right, steps
from tests.crash.processes import LEASE, Crew
from tests.waiting import eventually, until

STOPS = int(os.environ.get("OUTBOX_TEST_STOPS", "8"))

pytestmark = [pytest.mark.crash, pytest.mark.timeout(300)]


@pytest.mark.parametrize("meanwhile", ["succeeded", "running", "pending"])
async def test_late_settle_is_refused(database: Database, crew: Crew, meanwhile: str) -> None:
    """The first worker wakes up when another has finished the job, or still runs it, or has put it off."""
    job = (later_in_thread if meanwhile == "pending" else gated_in_thread).job()
    await database.enqueue(job)
    first = await crew.started()
    await until(lambda: database.started(job.id, fence=1, worker=first.name))
    first.send(signal.SIGSTOP)
    second = await crew.started()
    await until(lambda: database.started(job.id, fence=2, worker=second.name))
    if meanwhile != "running":
        database.open_gate(job.id, fence=2)
    before = await database.reaches(job.id, meanwhile)

    database.open_gate(job.id, fence=1)
    first.send(signal.SIGCONT)
    await first.reports("lease_lost", job_id=job.id, fence=1)

    after = await database.job(job.id)
    unmoved = ("state", "fence", "attempt", "lost", "worker_id", "run_at", "result", "finished_at")
    assert {name: after[name] for name in unmoved} == {name: before[name] for name in unmoved}
    assert any(run.what == "end" and run.worker == first.name for run in database.runs()), "void: nothing was settled"
    if meanwhile == "running":
        database.open_gate(job.id, fence=2)
    if meanwhile == "pending":
        async with AsyncSession(database.engine) as session:
            await control.cancel(session, job.id)
            await session.commit()
    await database.comes_to_rest()
    history = await database.history()
    must_be_right(history)
    if meanwhile != "pending":
        assert history.jobs[0].result == {"worker": second.name, "fence": 2}


async def test_late_settle_of_a_job_that_nobody_has_claimed_again(database: Database, crew: Crew) -> None:
    """Its lease has been taken, so its outcome does not count any more, though the fence is still the same."""
    # The job holds the only slot, and the connection for settling is open, so that the worker does not claim the job
    # again before it settles.
    worker = await crew.started(slots=1)
    first = tick.job(seconds=0)
    await database.enqueue(first)
    await database.reaches(first.id, "succeeded")
    job = gated_in_thread.job()
    await database.enqueue(job)
    await until(lambda: database.started(job.id, fence=1))
    worker.send(signal.SIGSTOP)
    await crew.started(queue="elsewhere")  # rescues everybody's jobs, and claims none of this queue
    await database.reaches(job.id, "pending", fence=1)
    database.open_gate(job.id, fence=1)
    worker.send(signal.SIGCONT)
    await worker.reports("lease_lost", job_id=job.id, fence=1)
    database.open_gate(job.id, fence=2)
    await database.comes_to_rest()
    history = await database.history()
    must_be_right(history)
    (result,) = [each.result for each in history.jobs if each.id == str(job.id)]
    assert result == {"worker": worker.name, "fence": 2}


async def test_late_release_is_refused(database: Database, crew: Crew) -> None:
    """The first worker wakes up, finds its lease gone, stops the handler, and would hand back what is not its own."""
    job = gated.job()
    await database.enqueue(job)
    first = await crew.started()
    await until(lambda: database.started(job.id, fence=1, worker=first.name))
    first.send(signal.SIGSTOP)
    second = await crew.started()
    await until(lambda: database.started(job.id, fence=2, worker=second.name))
    first.send(signal.SIGCONT)
    await first.reports("lease_late", job_id=job.id, fence=1)
    await first.reports("lease_lost", job_id=job.id, fence=1)
    assert await database.state(job.id) == "running"
    database.open_gate(job.id)
    await database.comes_to_rest()
    history = await database.history()
    must_be_right(history)
    assert history.jobs[0].result == {"worker": second.name, "fence": 2}
    mine = [run.what for run in history.runs if run.worker == first.name]
    assert mine == ["start", "broken off"], "the first worker's handler went on after its lease was lost"


async def test_workers_stopped_under_load(
    database: Database, crew: Crew, clients: Clients, seed: int, report: Report
) -> None:
    choice = random.Random(seed)
    for _ in range(3):
        crew.start()
    async with clients.at_work():
        for _ in range(STOPS):
            victim = choice.choice(crew.alive)
            await crew.in_the_middle(victim)
            victim.send(signal.SIGSTOP)
            await eventually(lambda: crew.is_rid_of(victim), within=PATIENCE)  # noqa: B023 - called in this round only
            victim.send(signal.SIGCONT)
    await database.comes_to_rest()
    refused = sum(worker.reported("lease_lost") for worker in crew.all)
    history = await database.history(clients.ledger)
    must_be_right(history)
    assert refused > 0, "void: no late settle was tried"
    report(stops=STOPS, refused=refused, rescued=count(history, "rescue"), committed=len(clients.ledger.committed))


async def test_blocked_event_loop_keeps_its_lease(database: Database, crew: Crew) -> None:
    """Heartbeats go on while a handler blocks the loop, and a worker that does rescue others has nothing to rescue."""
    job = blocking.job(seconds=3 * LEASE)
    await database.enqueue(job)
    first = await crew.started()
    await until(lambda: database.started(job.id, worker=first.name))
    # A claim of a dead worker, with the lease that the blocked one has: proof that somebody looks.
    lost = gated_in_thread.job()
    await database.enqueue(lost)
    database.open_gate(lost.id)
    await database.execute(
        f"""
        update outbox.live_job set state = 'running', fence = 1,
            lease_until = clock_timestamp() + make_interval(secs => {LEASE})
        where id = '{lost.id}'
        """  # noqa: S608
    )
    await crew.started()
    await database.comes_to_rest()

    history = await database.history()
    must_be_right(history)
    assert [run.what for run in history.runs if run.job == str(job.id)] == ["start", "end"]
    assert first.reported("loop_blocked") == 1
    told = steps(history.changes)
    assert [step.move for step in told[str(job.id)] if step.move != "renew"] == ["enqueue", "claim", "finish"]
    (rescue,) = [step for step in told[str(lost.id)] if step.move == "rescue"]
    assert rescue.change.seq < told[str(job.id)][-1].change.seq, "void: nobody looked for expired leases meanwhile"
