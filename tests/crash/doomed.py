"""``python -m tests.crash.doomed``: workers that die by SIGKILL at some point of a transactional job.

The process itself does nothing but fork: each child is a worker that starts without importing anything, works until one
of its points strikes, and says in a file, in one write, at which point it dies. SIGTERM ends the line.
"""

import asyncio
import os
import random
import signal
import sys
from types import SimpleNamespace
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from outbox import INJECTED, JobContext, Outbox, WorkerSettings, worker
from outbox import claim as claims
from outbox.worker import Worker

POINTS = ("claimed", "started", "written", "settled", "committing", "committed")
"""Between what and what a worker may die: each is passed once in the life of a job that succeeds."""

LEASE = 1.0
_EFFECT = text("insert into crash.effect (job, fence) values (:job, :fence)")


class Fate:
    """Decides at each point whether this is the end."""

    def __init__(self, log: int, chance: float, seed: int) -> None:
        self._log = log
        self._chance = chance
        self._random = random.Random(seed)

    def strikes(self) -> bool:
        """Whether to die now."""
        return self._random.random() < self._chance

    def pass_by(self, point: str) -> None:
        """Die here, or go on."""
        if self.strikes():
            self.die(point)

    def die(self, point: str) -> None:
        """Die here, and leave word of it."""
        os.write(self._log, f"{point}\n".encode())
        os.kill(os.getpid(), signal.SIGKILL)


def declare(engine: AsyncEngine, fate: Fate) -> Outbox:
    """The tasks, whose sessions pass the points of a commit."""

    class Doomed(Session):
        def commit(self) -> None:
            fate.pass_by("settled")
            if fate.strikes():  # while the COMMIT is on its way
                moment = random.choice((0, 0, 0.0002, 0.0005))
                asyncio.get_running_loop().call_later(moment, fate.die, "committing")
            super().commit()
            fate.pass_by("committed")

    outbox = Outbox(sessions=async_sessionmaker(engine, sync_session_class=Doomed))

    @outbox.task(queue="nobody's")
    async def child(parent: str) -> None: ...

    @outbox.task()
    async def step(*, session: AsyncSession = INJECTED, ctx: JobContext = INJECTED) -> int:
        fate.pass_by("started")
        await session.execute(_EFFECT, {"job": ctx.id, "fence": ctx.fence})
        child.enqueue(session, str(ctx.id))
        await session.flush()
        fate.pass_by("written")
        return ctx.fence

    return outbox


async def work(url: str, fate: Fate) -> None:
    """Work until dead."""

    async def take(*args: Any, **options: Any) -> list[Any]:
        taken = await claims.take(*args, **options)
        if taken:
            fate.pass_by("claimed")
        return taken

    engine = create_async_engine(url, poolclass=NullPool)
    settings = WorkerSettings(queues={"default": 4}, lease=LEASE, prefetch=0, wake_up=False, poll_max=0.05)
    worker.__dict__["claims"] = SimpleNamespace(take=take, levels=claims.levels)
    await Worker(declare(engine, fate), url, settings).run()


def main(url: str, log: str, chance: float, seed: int) -> None:
    """Fork worker after worker until told to stop."""
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    stopped = False
    child = 0

    def stop(_number: int, _frame: object) -> None:
        nonlocal stopped
        stopped = True
        if child:
            os.kill(child, signal.SIGKILL)

    signal.signal(signal.SIGTERM, stop)
    while not stopped:
        seed += 1
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            try:
                asyncio.run(work(url, Fate(file, chance, seed)))
            finally:
                os._exit(1)  # whatever it was, it was not a kill
        _, ended = os.waitpid(child, 0)
        if not os.WIFSIGNALED(ended):
            sys.exit("void: a worker ended by itself")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4]))
