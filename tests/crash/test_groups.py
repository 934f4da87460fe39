"""kill -9 of workers that run groups: the order of each holds, one at a time, and none is forgotten."""

import os
import random
from collections import defaultdict

import pytest

from outbox import NewJob
from tests.crash.database import Database, Report
from tests.crash.handlers import tick
from tests.crash.history import count, must_be_right
from tests.crash.processes import Crew

KILLS = int(os.environ.get("OUTBOX_TEST_KILLS", "50")) // 2
GROUPS = 30
LENGTH = 60
"""Jobs that wait in each group on the average, at least."""

pytestmark = [pytest.mark.crash, pytest.mark.timeout(600)]


async def test_groups_keep_their_order_while_workers_are_killed(
    database: Database, crew: Crew, seed: int, report: Report
) -> None:
    choice = random.Random(seed)
    groups: list[list[NewJob]] = [[] for _ in range(GROUPS)]
    for _ in range(3):
        crew.start()
    for _ in range(KILLS):
        while await database.value("select count(*) from outbox.live_job") < GROUPS * LENGTH:
            for n, group in enumerate(groups):
                more = [tick.options(group=f"g{n}").job(seconds=0.1) for _ in range(LENGTH)]
                await database.enqueue(*more)
                group.extend(more)
        victim = choice.choice(crew.alive)
        await crew.in_the_middle(victim)
        victim.kill()
        crew.start()
    await database.comes_to_rest()

    history = await database.history()
    must_be_right(history)
    rescued = count(history, "rescue")
    assert rescued >= KILLS / 3, "void: the workers were not killed in the middle of their jobs"
    group_of = {str(job.id): n for n, group in enumerate(groups) for job in group}
    place = {str(job.id): n for group in groups for n, job in enumerate(group)}
    runs = defaultdict(list)
    for run in history.runs:
        runs[group_of[run.job]].append(place[run.job])
    for n in range(GROUPS):
        # Every start, end and break-off of a job comes after those of the one before it in its group.
        assert runs[n] == sorted(runs[n]), f"group {n} did not keep its order"
        assert set(runs[n]) == set(range(len(groups[n])))
    report(kills=KILLS, rescued=rescued, jobs=len(group_of))
