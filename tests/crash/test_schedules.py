"""kill -9 of workers that fire schedules: one job for every moment, no more and no less."""

import os
import random
from datetime import timedelta

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from outbox import schedule
from outbox.schedule import Schedule
from tests.crash.database import PATIENCE, Database, Report
from tests.crash.handlers import tick
from tests.crash.history import must_be_right
from tests.crash.processes import Crew
from tests.waiting import eventually

KILLS = int(os.environ.get("OUTBOX_TEST_KILLS", "50")) // 4
SCHEDULES = 10
EACH = 3
"""Seconds between two ticks of each schedule."""

pytestmark = [pytest.mark.crash, pytest.mark.timeout(600)]


async def test_schedules_fire_once_for_each_moment_while_workers_are_killed(
    database: Database, crew: Crew, seed: int, report: Report
) -> None:
    choice = random.Random(seed)
    async with AsyncSession(database.engine) as session, session.begin():
        for n in range(SCHEDULES):
            job = tick.job(seconds=0.2)
            await schedule.put(session, Schedule(name=f"s{n}", job=job, cron=f"*/{EACH} * * * * *", catch_up="all"))
    for _ in range(3):
        crew.start()
    for _ in range(KILLS):
        victim = choice.choice(crew.alive)
        await crew.in_the_middle(victim)
        victim.kill()
        crew.start()

    async def nothing_is_missed() -> bool:
        return not await database.value("select count(*) from outbox.schedule where next_at < now() - interval '1 s'")

    await eventually(nothing_is_missed, within=PATIENCE)
    async with AsyncSession(database.engine) as session, session.begin():
        for n in range(SCHEDULES):
            await schedule.pause(session, f"s{n}")
    await database.comes_to_rest()

    must_be_right(await database.history())
    ticks = 0
    for n in range(SCHEDULES):
        rows = await database.fetch(
            "select nominal, job_id from outbox.tick where schedule = $1 order by nominal", f"s{n}"
        )
        nominals = [row["nominal"] for row in rows]
        assert nominals == [nominals[0] + timedelta(seconds=EACH * k) for k in range(len(rows))], "a moment is missing"
        ticks += len(rows)
    jobs = await database.value("select count(*) from outbox.job where id in (select job_id from outbox.tick)")
    assert jobs == ticks == await database.value("select count(*) from outbox.job")
    assert ticks > KILLS, "void: hardly anything has fired"
    report(kills=KILLS, ticks=ticks)
