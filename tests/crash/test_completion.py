"""Transactional completion under kill -9 at every point between the claim and the moment after the commit."""

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from outbox.newjob import NewJob, Options
from tests.crash.database import PATIENCE, Database, Report
from tests.crash.doomed import POINTS
from tests.waiting import eventually

KILLS = int(os.environ.get("OUTBOX_TEST_COMPLETION_KILLS", "1000"))
LINES = 3
"""Workers at a time, each followed by the next when it dies."""

CHANCE = 0.05
ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.crash, pytest.mark.timeout(900)]


@asynccontextmanager
async def doomed(
    database: Database, log: Path, *, chance: float, seed: int, lines: int
) -> AsyncIterator[list[subprocess.Popen[bytes]]]:
    """Lines of workers that die and are replaced, for the length of the block."""
    command = [sys.executable, "-m", "tests.crash.doomed", database.url, str(log), str(chance)]
    processes = [
        await asyncio.to_thread(subprocess.Popen, [*command, str(seed + n * 100_000)], cwd=ROOT) for n in range(lines)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        await asyncio.gather(*(asyncio.to_thread(process.wait, 30) for process in processes))


async def test_every_job_that_succeeded_has_one_effect_and_every_other_has_none(
    database: Database, tmp_path: Path, seed: int, report: Report
) -> None:
    await database.execute("create table crash.effect (job uuid not null, fence bigint not null)")
    log = tmp_path / "deaths"
    log.touch()

    async def enough() -> bool:
        assert all(line.poll() is None for line in processes), "void: a line of workers ended by itself"
        deaths = len(log.read_text().splitlines())
        waiting = await database.value("select count(*) from outbox.live_job where task = 'step'")
        if deaths < KILLS and waiting < 200:
            await database.enqueue(*(NewJob("step", "{}", Options()) for _ in range(300)))
        return deaths >= KILLS

    async with doomed(database, log, chance=CHANCE, seed=seed, lines=LINES) as processes:
        await eventually(enough, within=PATIENCE + KILLS)

    async def at_rest() -> bool:
        return not await database.value("select count(*) from outbox.live_job where task = 'step'")

    async with doomed(database, log, chance=0, seed=seed, lines=1):
        await eventually(at_rest, within=PATIENCE)

    wrong = await database.fetch(
        """
        select job.id, job.state, job.fence, job.result, effect.fences, child.count from outbox.job job
        left join lateral (
            select coalesce(array_agg(fence), '{}') as fences from crash.effect where effect.job = job.id
        ) effect on true
        left join lateral (
            select count(*) from outbox.live_job where task = 'child' and payload ->> 'parent' = job.id::text
        ) child on true
        where job.task = 'step'
          and (job.state, effect.fences, child.count, job.result) is distinct from
              ('succeeded', array[job.fence], 1::bigint, to_jsonb(job.fence))
          and (job.state, effect.fences, child.count, job.result) is distinct from
              ('failed', '{}'::bigint[], 0::bigint, null::jsonb)
        """
    )
    assert wrong == [], f"{len(wrong)} jobs whose effects are not what their states say"
    states = Counter(row["state"] for row in await database.fetch("select state from outbox.job where task = 'step'"))
    assert states["succeeded"] > KILLS / 2, "void: hardly anything succeeded"
    deaths = Counter(log.read_text().splitlines())
    assert all(deaths[point] >= KILLS / 100 for point in POINTS), f"void: hardly a death at some point: {deaths}"
    report(deaths=dict(deaths), states=dict(states))
