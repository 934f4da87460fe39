"""kill -9 of workers in the middle of batches whose jobs come after one another: all is counted, once."""

import asyncio
import os
import random

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from outbox import NewJob
from outbox.batch import Batch
from tests.crash.database import Database, Report
from tests.crash.handlers import called_back, tick
from tests.crash.history import History, count, must_be_right
from tests.crash.processes import Crew

KILLS = int(os.environ.get("OUTBOX_TEST_KILLS", "50")) // 3
SIZE = 30

pytestmark = [pytest.mark.crash, pytest.mark.timeout(600)]


def flow(choice: random.Random) -> Batch:
    """Each job comes after up to two of those before it."""
    jobs: list[NewJob] = []
    for _ in range(SIZE):
        before = choice.sample(jobs, min(len(jobs), choice.choice((0, 1, 2))))
        task = tick.options(after=before) if before else tick
        jobs.append(task.job(seconds=choice.random() / 5))
    return Batch("flow", jobs, on_complete=called_back)


def must_be_in_order(history: History, batches: list[Batch]) -> None:
    """Fail the test if a job started before one that it comes after had ended, and that well."""
    ended = {run.job: at for at, run in enumerate(history.runs) if run.what == "end"}
    first = {run.job: at for at, run in reversed(list(enumerate(history.runs)))}
    states = {job.id: job.row.state for job in history.jobs}
    pairs = [(str(job.id), str(each.id)) for batch in batches for job in batch for each in job.options.after]
    for job, before in pairs:
        if job in first:
            assert states[before] == "succeeded"
            assert ended[before] < first[job], "it started before one it comes after had ended"


async def test_flows_come_to_their_ends_while_workers_are_killed(
    database: Database, crew: Crew, seed: int, report: Report
) -> None:
    choice = random.Random(seed)
    batches: list[Batch] = []
    enough = asyncio.Event()

    async def feed() -> None:
        # All the time: else the others might work everything off before the victim has anything.
        while not enough.is_set():
            if await database.value("select count(*) from outbox.live_job") < 3 * SIZE:
                batches.append(flow(choice))
                async with AsyncSession(database.engine) as session, session.begin():
                    batches[-1].enqueue(session)
            await asyncio.sleep(0.02)

    feeding = asyncio.create_task(feed())
    for _ in range(3):
        crew.start()
    for _ in range(KILLS):
        victim = random.Random(seed + len(crew.all)).choice(crew.alive)
        await crew.in_the_middle(victim)
        victim.kill()
        crew.start()
    enough.set()
    await feeding
    await database.comes_to_rest()

    history = await database.history()
    must_be_right(history)
    rescued = count(history, "rescue")
    assert rescued >= KILLS / 3, "void: the workers were not killed in the middle of their jobs"
    wrong = await database.fetch(
        """
        select batch.* from outbox.batch
        cross join lateral (
            select count(*) filter (where state = 'succeeded') as succeeded,
                   count(*) filter (where state = 'failed') as failed,
                   count(*) filter (where state = 'cancelled') as cancelled
            from outbox.finished_job job where job.batch_id = batch.id
        ) real
        where finished_at is null or total <> $1
           or (batch.succeeded, batch.failed, batch.cancelled) <> (real.succeeded, real.failed, real.cancelled)
        """,
        SIZE,
    )
    assert wrong == []
    calls = await database.fetch(
        "select payload -> 'batch' ->> 'id' as batch from outbox.job where task = 'called_back'"
    )
    assert sorted(row["batch"] for row in calls) == sorted(str(batch.id) for batch in batches)
    must_be_in_order(history, batches)
    report(kills=KILLS, batches=len(batches), rescued=rescued)
