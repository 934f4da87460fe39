"""The scene of ``make crash``: a worker is killed in the middle of a job, and another one finishes it."""

import asyncio
import os
import re
import signal
import time
from collections.abc import Callable
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from api.crew import Crew, Failure, Member, say
from api.handlers.demo import demo_step
from outbox import Job, State, address, status

STEPS = 8
KILL_AT = 3
LEASE = 5


async def play(crew: Crew, base: str, url: str) -> None:
    """Start two workers, give them a job of eight seconds, kill the one that runs it after three.

    :raises Failure: if the job is not finished by the other one.
    """
    queue = f"demo-{os.getpid()}"  # no worker but these two may take the job
    workers = dict([await _worker(crew, name, queue) for name in ("worker A", "worker B")])
    engine = address.engine(url)
    try:
        async with AsyncSession(engine) as session, session.begin():
            id = demo_step.options(queue=queue).enqueue(session, STEPS).id
        say(f"\nenqueued   a job of {STEPS} seconds: {base}/v1/jobs/{id}")
        job = await _until(engine, id, lambda job: _steps(job) >= KILL_AT)
        victim = workers[str(job.worker_id)]
        say(f"kill -9    {victim.name}, which had done {_steps(job)} of {STEPS} steps (fence {job.fence})")
        victim.may_end = True
        os.kill(victim.pid, signal.SIGKILL)
        began = time.monotonic()
        say(f"waiting    until its lease of {LEASE} s is over, for nobody can know sooner that it is dead")
        job = await _until(engine, id, lambda job: job.lost > 0 and job.state is State.RUNNING)
        heir = workers[str(job.worker_id)]
        say(
            f"rescued    after {time.monotonic() - began:.1f} s by {heir.name}, from the start: "
            f"fence {job.fence}, attempt {job.attempt}, lost {job.lost}"
        )
        job = await _until(engine, id, lambda job: job.done)
        if job.state is not State.SUCCEEDED or heir is victim:
            raise Failure(f"the job {job.state} on {heir.name}: this must not happen, please report it")
        say(f"succeeded  on {heir.name}: fence {job.fence}, attempt {job.attempt}, result {job.result}")
        say("\nThe job came to its end although its worker was killed. The lost run is counted, but is no attempt.")
    finally:
        await engine.dispose()


async def _worker(crew: Crew, name: str, queue: str) -> tuple[str, Member]:
    arguments = ("-m", "outbox", "worker", "api.handlers:outbox", "-q", f"{queue}:1", "--lease", str(LEASE))
    member = await crew.start(name, *arguments, "--grace", "1")
    while not (started := re.search(r"worker_started .*?worker_id=(\S+)", await member.lines.get())):
        pass
    say(f"{name}   process {member.pid}, id {started[1]}")
    return started[1], member


def _steps(job: Job) -> int:
    return int((job.progress or {}).get("done", 0)) if job.state is State.RUNNING else 0


async def _until(engine: AsyncEngine, id: UUID, holds: Callable[[Job], bool]) -> Job:
    job = None
    for _ in range(600):
        async with AsyncSession(engine) as session:
            job = await status.get(session, id)
        if job is not None and holds(job):
            return job
        await asyncio.sleep(0.1)
    raise Failure(f"nothing happened to the job within a minute: {job}")
