"""The claims of one worker between being taken and being settled: which wait, which run, and how each ends.

A claim waits in its queue's lane until a slot is free, runs in an asyncio task of its own, and leaves with its outcome
to the settler. ``held`` knows it from the moment it was taken until it has been settled; the heartbeat renews what is
in there.
"""

import asyncio
import contextvars
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from outbox import attempt, events, trace
from outbox.children import Children
from outbox.context import Claim, Stop
from outbox.job import State
from outbox.lane import Lane
from outbox.outcome import RELEASED, Finished, Outcome
from outbox.registry import Outbox
from outbox.settings import WorkerSettings
from outbox.settler import Settler
from outbox.tally import Tally

MAX_BACKLOG = 5000
"""Outcomes waiting to be written beyond which nothing more is wanted: the database does not keep up."""


class Observer(Protocol):
    """Is told of every attempt of a worker, for people to see. Must be quick, and must not raise."""

    def started(self, claim: Claim) -> None:
        """Its handler begins."""

    def ended(self, claim: Claim, outcome: Outcome, seconds: float) -> None:
        """It is over; the outcome is about to be written."""


class Runner:
    """Runs claims in the slots of their queues.

    :param held: every claim of this worker by its job's id.
    :param wake: called when there is room again for claims that are probably there.
    :param tally: counts attempts, and leases that were lost.
    :param observer: is told of every attempt.
    """

    def __init__(
        self,
        outbox: Outbox,
        settings: WorkerSettings,
        settler: Settler,
        held: dict[object, Claim],
        wake: Callable[[], None],
        tally: Tally,
        observer: Observer | None = None,
    ) -> None:
        self._outbox = outbox
        self._settler = settler
        self._held = held
        self._wake = wake
        self._tally = tally
        self._observer = observer
        self._lanes = {name: Lane[Claim](name, slots, settings.prefetch) for name, slots in settings.queues.items()}
        self._suspect: Claim | None = None
        self._running: dict[Claim, asyncio.Task[None]] = {}
        self._threads = ThreadPoolExecutor(sum(settings.queues.values()), thread_name_prefix="outbox")
        self._children = Children(outbox, settings.max_jobs_per_child)
        self._context = contextvars.copy_context()
        self._idle = asyncio.Event()
        self._closed = False

    def __len__(self) -> int:
        return len(self._running)

    @property
    def holds_suspect(self) -> bool:
        """Whether a job is held, or its outcome still unwritten, that fails if it loses one worker more."""
        return self._suspect is not None and self._held.get(self._suspect.id) is self._suspect

    def wanted(self) -> dict[str, int]:
        """For each queue with room, how many claims to take now."""
        if len(self._settler) > MAX_BACKLOG:
            return {}
        now = time.monotonic()
        return {lane.name: wants for lane in self._lanes.values() if (wants := lane.wants(now))}

    def free(self) -> dict[str, int]:
        """For each queue, its free slots that no claim waits for."""
        return {lane.name: lane.free for lane in self._lanes.values()}

    def accept(self, taken: Sequence[Claim], wanted: Mapping[str, int]) -> bool:
        """Start what has a slot and let the rest wait; whether more is probably there."""
        self._held.update((claim.id, claim) for claim in taken)
        if self._closed:
            self._release(taken)
            return False
        came = dict.fromkeys(wanted, 0)
        for claim in taken:
            came[claim.queue] += 1
            if claim.is_suspect:
                self._suspect = claim
                self._lanes[claim.queue].waiting.appendleft(claim)  # not to be blamed for what it would wait behind
            else:
                self._lanes[claim.queue].waiting.append(claim)
        for name, count in came.items():
            self._lanes[name].hungry = count >= wanted[name]
            self._fill(self._lanes[name], time.monotonic())
        return any(self._lanes[name].hungry for name in wanted)

    def lease_lost(self, claim: Claim) -> None:
        """Somebody else has taken the job: stop it here. Whatever it still writes is refused by its fence."""
        if self._held.get(claim.id) is not claim:
            return
        if self._take_out(claim):
            del self._held[claim.id]
        elif not self._interrupt(claim, Stop.LEASE_LOST):
            return
        self._tally.leases_lost += 1
        events.emit(events.WARNING, "lease_late", job_id=claim.id, task=claim.task, fence=claim.fence)

    def cancel(self, claim: Claim) -> None:
        """A person wants the job cancelled: if it waits here it ends now, if it runs its handler is told to stop."""
        if self._held.get(claim.id) is not claim:
            return
        if self._take_out(claim):
            self._settler.put(claim, Finished(State.CANCELLED))
        else:
            self._interrupt(claim, Stop.CANCELLED)

    def release_stalled(self) -> None:
        """Hand back what has waited too long behind slow jobs."""
        now = time.monotonic()
        for lane in self._lanes.values():
            self._release(lane.stalled(now))

    def close(self) -> None:
        """Start nothing any more, and hand back what has not started."""
        self._closed = True
        for lane in self._lanes.values():
            self._release(lane.clear())

    def interrupt_all(self) -> None:
        """Tell every running handler to stop, for the process is leaving."""
        for claim in list(self._running):
            self._interrupt(claim, Stop.SHUTDOWN)

    def leave_behind(self) -> int:
        """Hand back the jobs whose handlers will not stop; how many there are. The process must exit soon."""
        left = list(self._running)
        self._running.clear()
        self._release(left)
        self._threads.shutdown(wait=False, cancel_futures=True)
        return len(left)

    async def end_children(self) -> None:
        """End the child processes, whatever they do."""
        await self._children.end()

    async def ended(self) -> None:
        """Return once nothing runs."""
        while self._running:
            self._idle.clear()
            await self._idle.wait()

    def _fill(self, lane: Lane[Claim], now: float) -> None:
        if self._closed:
            return
        loop = asyncio.get_running_loop()
        while (claim := lane.next(now)) is not None:
            # Each in a context of its own: what a handler sets in it must not reach the next job.
            context = self._context.copy()
            self._running[claim] = loop.create_task(self._perform(claim, lane), context=context)

    async def _perform(self, claim: Claim, lane: Lane[Claim]) -> None:
        # Only from here on may the task be cancelled: one cancelled before its first step would never end its claim.
        claim.begun = True
        started = time.monotonic()
        if self._observer is not None:
            self._observer.started(claim)
        trace.resume(claim.headers)
        task = self._outbox[claim.task]
        if task.bounds.isolation:
            outcome = await self._children.run(task, claim)
        else:
            outcome = await attempt.run(task, claim, self._threads)
        if claim not in self._running:
            return  # handed back while it ran on: see leave_behind
        now = time.monotonic()
        seconds = now - started
        del self._running[claim]
        if isinstance(outcome, Finished) and outcome.written:
            self._held.pop(claim.id, None)
            if claim.lets_others_run:
                self._wake()
        else:
            self._settler.put(claim, outcome)
        self._tally.note(claim.queue, claim.task, outcome, claim.waited, seconds)
        _report(claim, outcome, seconds)
        if self._observer is not None:
            self._observer.ended(claim, outcome, seconds)
        lane.give_back(seconds)
        self._fill(lane, now)
        if lane.hungry and lane.has_room():
            self._wake()
        if not self._running:
            self._idle.set()

    def _interrupt(self, claim: Claim, why: Stop) -> bool:
        if claim not in self._running or claim.stop is not None or claim.settling:
            return False
        claim.stop = why
        if claim.begun:
            self._running[claim].cancel()
        return True

    def _take_out(self, claim: Claim) -> bool:
        """Take a claim that has not started out of what waits; whether it was there."""
        waiting = self._lanes[claim.queue].waiting
        if claim not in waiting:
            return False
        waiting.remove(claim)
        return True

    def _release(self, claims: Sequence[Claim]) -> None:
        for claim in claims:
            self._settler.put(claim, RELEASED)
        if claims:
            events.emit(events.INFO, "jobs_released", count=len(claims))


def _report(claim: Claim, outcome: Outcome, seconds: float) -> None:
    level = events.DEBUG if isinstance(outcome, Finished) and outcome.state is State.SUCCEEDED else events.INFO
    if not events.log.isEnabledFor(level):
        return  # not even the fields are put together: this is done for every job
    events.emit(
        level,
        "job_ended",
        job_id=claim.id,
        task=claim.task,
        attempt=claim.attempt,
        outcome=outcome.state if isinstance(outcome, Finished) else "postponed",
        error=outcome.error.type if outcome.error else None,
        seconds=round(seconds, 3),
    )
