"""kill -9 of workers in the middle of their jobs: nothing is lost, nothing is settled by the dead, and all jobs end."""

import os
import random

import pytest

from tests.crash.clients import Clients
from tests.crash.database import PATIENCE, Database, Report
from tests.crash.handlers import poison, tick
from tests.crash.history import blamed_unjustly, count, must_be_right
from tests.crash.processes import Crew
from tests.waiting import eventually

KILLS = int(os.environ.get("OUTBOX_TEST_KILLS", "50"))

pytestmark = [pytest.mark.crash, pytest.mark.timeout(600)]


async def test_workers_killed_under_load(
    database: Database, crew: Crew, clients: Clients, seed: int, report: Report
) -> None:
    choice = random.Random(seed)
    for _ in range(3):
        crew.start()
    async with clients.at_work():
        for _ in range(KILLS):
            victim = choice.choice(crew.alive)
            await crew.in_the_middle(victim)
            victim.kill()
            crew.start()
    await database.comes_to_rest()

    history = await database.history(clients.ledger)
    must_be_right(history)
    unjust = len(blamed_unjustly(history))
    assert unjust <= KILLS / 10, "jobs failed as poison that had not even started when their last worker died"
    assert clients.ledger.unknown == set(), "the server was there all the time"
    assert clients.ledger.rolled_back, "void: no client has rolled back"
    rescued = count(history, "rescue")
    assert rescued >= KILLS / 2, "void: the workers were not killed in the middle of their jobs"
    report(
        kills=KILLS,
        committed=len(clients.ledger.committed),
        rolled_back=len(clients.ledger.rolled_back),
        rescued=rescued,
        blamed_unjustly=unjust,
        failed_as_lost=sum(job.row.state == "failed" for job in history.jobs),
    )


async def test_poison_takes_no_other_job_with_it(database: Database, crew: Crew, report: Report) -> None:
    """A job that kills its worker fails after three of them, and those that ran beside it succeed all the same."""
    beside = [tick.job(seconds=0.5) for _ in range(6)]
    bad = poison.options(priority=0).job()
    after = [tick.options(priority=0).job(seconds=0.01) for _ in range(20)]
    await database.enqueue(*beside, bad, *after)

    async def is_over() -> bool:
        if not crew.alive:
            crew.start(slots=8)
        return not await database.value("select count(*) from outbox.live_job")

    await eventually(is_over, within=PATIENCE)

    history = await database.history()
    states = {job.id: job.row.state for job in history.jobs}
    assert states.pop(str(bad.id)) == "failed"
    assert set(states.values()) == {"succeeded"}, "innocent jobs failed with the poison job"
    assert len(states) == len(beside) + len(after)
    must_be_right(history)
    with_it = [run for run in history.runs if run.what == "start" and run.fence == 1 and run.worker == "worker1"]
    assert {run.job for run in with_it} >= {str(job.id) for job in beside}, "void: it died alone"
    assert blamed_unjustly(history) == []
    deaths = sum(run.job == str(bad.id) for run in history.runs)
    assert deaths == 3
    report(deaths=deaths, workers=len(crew.all))
