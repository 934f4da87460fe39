"""How things are, in a sentence, and what of it needs somebody."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from outbox.fastapi.statistics import Statistics
from outbox.presence import WorkerRow
from outbox.queue import MOST as MOST_IN_QUEUE
from outbox.queue import QueueState
from outbox.words import number, span

MOST = 1000
"""Failed jobs at most that are counted."""

LATE = 300.0
"""Seconds that a job may be due before it is said that its queue is behind."""

Page = Literal["jobs", "queues", "workers"]

_TROUBLE = text("select outbox.trouble(:most, null)")


@dataclass(frozen=True, slots=True)
class Remark:
    """One thing that somebody should look at.

    :ivar page: where; with what to search for there.
    """

    text: str
    page: Page
    search: str = ""
    grave: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """How things are.

    :ivar text: what has been done.
    :ivar remarks: what needs attention, the gravest first; nothing if all is well.
    """

    text: str
    remarks: Sequence[Remark]

    @property
    def tone(self) -> Literal["good", "warn", "bad"]:
        """In a word."""
        if not self.remarks:
            return "good"
        return "bad" if any(remark.grave for remark in self.remarks) else "warn"


async def troubled(session: AsyncSession) -> int:
    """How many jobs have failed and were neither retried nor discarded, up to a bound."""
    count: int = (await session.execute(_TROUBLE, {"most": MOST})).scalar_one()
    return count


def verdict(
    queues: Sequence[QueueState],
    workers: Sequence[WorkerRow],
    failed: int,
    statistics: Statistics,
    now: datetime,
) -> Verdict:
    """Judge what has been seen."""
    remarks = [*_of_workers(queues, workers), *(each for state in queues for each in _of_queue(state, now))]
    if failed:
        verb = "needs" if failed == 1 else "need"
        jobs = "job" if failed == 1 else "jobs"
        remarks.append(Remark(f"{number(failed, MOST)} failed {jobs} {verb} attention", "jobs", "state:failed"))
    return Verdict(_done(statistics), sorted(remarks, key=lambda remark: not remark.grave))


def _done(statistics: Statistics) -> str:
    succeeded, waited = statistics.total.succeeded, statistics.total.wait_p95
    length = {"1h": "the last hour", "24h": "the last 24 hours", "7d": "the last 7 days"}[statistics.window]
    said = f"{number(succeeded)} {'job' if succeeded == 1 else 'jobs'} succeeded in {length}"
    return f"{said}; 95 of 100 waited less than {span(waited)}" if waited is not None else said


def _of_workers(queues: Sequence[QueueState], workers: Sequence[WorkerRow]) -> Iterator[Remark]:
    if any(worker.alive for worker in workers):
        return
    waiting = any(state.ready for state in queues)
    yield Remark("no worker is up" + (", and jobs wait" if waiting else ""), "workers", grave=waiting)


def _of_queue(state: QueueState, now: datetime) -> Iterator[Remark]:
    waiting = f"{number(state.ready, MOST_IN_QUEUE)} {'job waits' if state.ready == 1 else 'jobs wait'}"
    if state.paused_at is not None:
        yield Remark(f"queue {state.name} is paused, {waiting} in it", "queues")
    elif state.ready and not state.workers:
        yield Remark(f"no worker serves queue {state.name}, {waiting} in it", "queues", grave=True)
    elif state.oldest is not None and (late := (now - state.oldest).total_seconds()) > LATE:
        yield Remark(f"queue {state.name} is {span(late)} behind", "queues", grave=True)
