"""One worker process: claims jobs, runs them, settles how they ended, and leaves in good order.

The life of a claim here: taken by ``_claim_for_ever`` into its queue's lane, started by ``_start`` in a task of its
own, ended by ``_perform``, which gives its slot to the next and its outcome to the settler. ``held`` knows every claim
from the moment it is taken until it has been settled; the heartbeat renews what is in it.
"""

import asyncio
import contextlib
import random
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID, uuid4

import asyncpg

from outbox import attempt, events, listener
from outbox import claim as claims
from outbox.connection import Link
from outbox.context import Claim, Stop
from outbox.errors import DeclarationError, SchemaMismatch
from outbox.heartbeat import Heartbeat
from outbox.job import State
from outbox.lane import Lane
from outbox.outcome import RELEASED, Finished, Outcome
from outbox.schema import LATEST
from outbox.settings import WorkerSettings
from outbox.settler import Settler
from outbox.task import Outbox

WATCH = 0.25
"""Seconds between two looks at stalled lanes and at how late the event loop is."""

LATE = 1.0
"""A look that comes this many seconds late was held up by a handler that blocks the event loop."""

LAST_CLAIM = 1.0
LAST_SETTLE = 5.0
"""Seconds that a stopping worker gives its last statements; a database that does not answer must not keep it."""

MAX_BACKLOG = 5000
"""Outcomes waiting to be written beyond which nothing more is claimed: the database does not keep up."""


class Worker:
    """Runs the tasks of an outbox until it is stopped.

    :param outbox: the declared tasks; jobs of others are left alone.
    :param url: a libpq or SQLAlchemy URL of the database.
    """

    def __init__(self, outbox: Outbox, url: str, settings: WorkerSettings | None = None) -> None:
        if not len(outbox):
            raise DeclarationError(
                "this outbox has no tasks; import the modules that declare them before the worker starts"
            )
        self.id: UUID = uuid4()
        self._outbox = outbox
        self._url = url
        self._settings = settings or WorkerSettings()
        self._tasks = {task.name: task.retry.max_attempts for task in outbox}
        self._lanes = {name: Lane(name, n, self._settings.prefetch) for name, n in self._settings.queues.items()}
        self._held: dict[object, Claim] = {}
        self._running: dict[Claim, asyncio.Task[None]] = {}
        self._threads = ThreadPoolExecutor(sum(self._settings.queues.values()), thread_name_prefix="outbox")
        self._stop_asked = asyncio.Event()
        self._stop_now = asyncio.Event()
        self._suspects: deque[Claim] = deque()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._settler = Settler(Link(url, self._settings, "outbox settle"), self._held)
        self._heartbeat: Heartbeat | None = None

    def stop(self) -> None:
        """Stop in good order: claim no more, hand back what has not started, let the rest end within the grace period.

        Asked a second time, the grace period is over at once.
        """
        (self._stop_now if self._stop_asked.is_set() else self._stop_asked).set()
        self._wake.set()

    @property
    def grace(self) -> float:
        """Seconds that running jobs get when the worker is asked to stop."""
        return self._settings.grace

    @property
    def farewell(self) -> float:
        """Seconds after the grace by which the worker has stopped, unless a handler blocks its event loop."""
        return self._settings.cancel_grace + LAST_CLAIM + LAST_SETTLE

    def abandon(self) -> None:
        """Hand everything back, from another thread, when the event loop is blocked and will not do it.

        The process must exit right after. Returns within a few seconds, whether or not it worked.
        """
        if self._heartbeat is not None:
            outcomes = dict(self._settler.waiting())
            self._heartbeat.settle([(claim, outcomes.get(claim, RELEASED)) for claim in list(self._held.values())])
        events.emit(events.ERROR, "worker_abandoned", worker_id=self.id, left_running=len(self._running))

    async def run(self) -> bool:
        """Work until stopped.

        :return: whether all handlers ended. If not, their jobs have been handed back, and the process should exit
            at once, since they are still running in it.
        :raises SchemaMismatch: if the database's schema is not what this release needs.
        """
        claim_link = Link(self._url, self._settings, "outbox claim")
        if not await self._wait_for_database(claim_link):
            return True
        events.emit(
            events.INFO, "worker_started", worker_id=self.id, queues=dict(self._settings.queues), tasks=len(self._tasks)
        )
        heartbeat = self._heartbeat = Heartbeat(
            self._url, self._settings, self._held, on_lost=self._lease_lost, on_cancel=self._cancel_asked
        )
        heartbeat.start()
        claiming = asyncio.create_task(self._claim_for_ever(claim_link), name="outbox-claim")
        loops = [
            asyncio.create_task(self._settler.run(), name="outbox-settle"),
            asyncio.create_task(self._watch_for_ever(), name="outbox-watch"),
        ]
        if self._settings.wake_up:
            listening = listener.listen(self._url, self._settings, self._lanes, self._wake.set)
            loops.append(asyncio.create_task(listening, name="outbox-listen"))
        try:
            await self._until_stop_asked(claiming, *loops)
            return await self._drain(claiming)
        finally:
            heartbeat.stop()
            for loop in (claiming, *loops):
                loop.cancel()
            await asyncio.gather(claiming, *loops, return_exceptions=True)
            self._threads.shutdown(wait=False, cancel_futures=True)
            await claim_link.close()
            await self._settler.close()

    async def _wait_for_database(self, link: Link) -> bool:
        while not self._stop_asked.is_set():
            try:
                rows = await link.fetch("select max(version) as version from outbox.schema_version")
            except asyncpg.UndefinedTableError:
                rows = []
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as exc:
                await link.pause(exc)
                continue
            version = (rows and rows[0]["version"]) or 0
            if version < LATEST:
                raise SchemaMismatch(
                    f"the database holds version {version} of the outbox schema, this release needs {LATEST}: "
                    "migrate first (alembic upgrade head, or outbox migrate)"
                )
            return True
        return False

    async def _until_stop_asked(self, *loops: asyncio.Task[None]) -> None:
        asked = asyncio.create_task(self._stop_asked.wait())
        done, _ = await asyncio.wait({asked, *loops}, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        for loop in done - {asked}:
            loop.result()  # a loop ends only by an error that none of us foresaw: better loud than stopped in silence

    async def _claim_for_ever(self, link: Link) -> None:
        pause = self._settings.poll_min
        while not self._stop_asked.is_set():
            self._wake.clear()
            wanted = self._wanted()
            if not wanted:
                await self._sleep(self._settings.poll_max)
                continue
            try:
                taken = await claims.take(link, wanted, self._tasks, self.id, self._settings.lease)
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as exc:
                await link.pause(exc)
                continue
            self._held.update((claim.id, claim) for claim in taken)
            if self._stop_asked.is_set():
                self._release(taken)
                return
            self._accept(taken, wanted)
            if any(self._lanes[name].hungry for name in wanted):
                # Settles and handlers get their turn before more is claimed.
                await asyncio.sleep(0)
                pause = self._settings.poll_min
                continue
            pause = self._settings.poll_min if taken else min(pause * 1.5, self._settings.poll_max)
            await self._sleep(pause)

    def _wanted(self) -> dict[str, int]:
        if self._suspects or len(self._settler) > MAX_BACKLOG:
            return {}
        now = time.monotonic()
        return {lane.name: wants for lane in self._lanes.values() if (wants := lane.wants(now))}

    def _accept(self, taken: list[Claim], wanted: dict[str, int]) -> None:
        came = dict.fromkeys(wanted, 0)
        for claim in taken:
            came[claim.queue] += 1
            (self._suspects if claim.is_suspect else self._lanes[claim.queue].waiting).append(claim)
        for name, count in came.items():
            lane = self._lanes[name]
            lane.hungry = count >= wanted[name]
            self._start(lane)

    def _start(self, lane: Lane) -> None:
        if self._stop_asked.is_set():
            return
        if self._suspects:
            self._start_suspect()
            return
        now = time.monotonic()
        while (claim := lane.next(now)) is not None:
            self._running[claim] = asyncio.create_task(self._perform(claim, lane))

    def _start_suspect(self) -> None:
        """Start a job whose next dead worker would be its last, once nothing else runs: none but it can be blamed."""
        if not self._running:
            claim = self._suspects[0]
            lane = self._lanes[claim.queue]
            lane.running += 1
            self._running[claim] = asyncio.create_task(self._perform(claim, lane))

    async def _perform(self, claim: Claim, lane: Lane) -> None:
        started = time.monotonic()
        outcome = await attempt.run(self._outbox[claim.task], claim, self._threads)
        if self._running.pop(claim, None) is None:
            return  # handed back while it ran on: see _drain
        self._settler.put(claim, outcome)
        _report(claim, outcome, started)
        lane.running -= 1
        if claim.is_suspect:
            self._suspects.remove(claim)
            for each in self._lanes.values():
                self._start(each)
        self._start(lane)
        if claim.is_suspect or (lane.hungry and lane.has_room()):
            self._wake.set()
        if not self._running:
            self._idle.set()

    async def _watch_for_ever(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(WATCH)
            now = time.monotonic()
            if now - before - WATCH > LATE:
                events.emit(events.WARNING, "loop_blocked", seconds=round(now - before - WATCH, 1))
            for lane in self._lanes.values():
                self._release(lane.stalled(now))

    def _lease_lost(self, claim: Claim) -> None:
        if self._held.get(claim.id) is claim and self._interrupt(claim, Stop.LEASE_LOST):
            events.emit(events.WARNING, "lease_late", job_id=claim.id, task=claim.task, fence=claim.fence)

    def _cancel_asked(self, claim: Claim) -> None:
        if self._held.get(claim.id) is claim:
            self._interrupt(claim, Stop.CANCELLED)

    def _interrupt(self, claim: Claim, why: Stop) -> bool:
        task = self._running.get(claim)
        if task is None or claim.stop is not None:
            return False
        claim.stop = why
        task.cancel()
        return True

    def _release(self, waiting: list[Claim]) -> None:
        for claim in waiting:
            self._settler.put(claim, RELEASED)
        if waiting:
            events.emit(events.INFO, "jobs_released", count=len(waiting))

    async def _drain(self, claiming: asyncio.Task[None]) -> bool:
        events.emit(events.INFO, "worker_stopping", worker_id=self.id, running=len(self._running))
        for lane in self._lanes.values():
            self._release(lane.clear())
        self._release([claim for claim in self._suspects if claim not in self._running])
        await self._ended_within(self._settings.grace, self._stop_now)
        for claim in list(self._running):
            self._interrupt(claim, Stop.SHUTDOWN)
        await self._ended_within(self._settings.cancel_grace)
        left = list(self._running)
        self._running.clear()
        for claim in left:
            self._settler.put(claim, RELEASED)
        # What was being claimed when the stop came must still be handed back.
        await asyncio.wait({claiming}, timeout=LAST_CLAIM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._settler.emptied(), LAST_SETTLE)
        events.emit(events.INFO, "worker_stopped", worker_id=self.id, left_running=len(left), unsettled=len(self._held))
        return not left

    async def _ended_within(self, seconds: float, sooner: asyncio.Event | None = None) -> None:
        if not self._running:
            return
        self._idle.clear()
        waits = {asyncio.create_task(event.wait()) for event in (self._idle, sooner) if event is not None}
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    async def _sleep(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds * random.uniform(0.8, 1.2)):
                await self._wake.wait()


def _report(claim: Claim, outcome: Outcome, started: float) -> None:
    succeeded = isinstance(outcome, Finished) and outcome.state == State.SUCCEEDED
    level = events.DEBUG if succeeded else events.INFO
    if events.log.isEnabledFor(level):
        ended = outcome.state.value if isinstance(outcome, Finished) else "postponed"
        error = outcome.error.type if outcome.error else None
        seconds = round(time.monotonic() - started, 3)
        events.emit(
            level,
            "job_ended",
            job_id=claim.id,
            task=claim.task,
            attempt=claim.attempt,
            outcome=ended,
            error=error,
            seconds=seconds,
        )
