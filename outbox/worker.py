"""One worker process: claims jobs, has them run and settled, and leaves in good order.

It claims while there is room (``runner``), outcomes are written as they come (``settler``), leases are renewed in a
thread (``heartbeat``), and hints that new jobs are there are heard (``listener``). Rows are all that workers share.
"""

import asyncio
import contextlib
import random
import time
from uuid import UUID, uuid4

import asyncpg

from outbox import children, events, limit, listener, ticks
from outbox import claim as claims
from outbox.connection import FAILURES, Link
from outbox.context import Claim
from outbox.errors import DeclarationError, SchemaMismatch
from outbox.heartbeat import Heartbeat
from outbox.marks import Marks
from outbox.meter import Meter
from outbox.outcome import RELEASED
from outbox.presence import Presence
from outbox.registry import Outbox
from outbox.runner import Observer, Runner
from outbox.schema import LATEST
from outbox.settings import WorkerSettings
from outbox.settler import Settler
from outbox.tally import Tally
from outbox.turns import Turns

WATCH = 0.25
"""Seconds between two looks at stalled claims and at how late the event loop is."""

LATE = 1.0
"""A look that comes this many seconds late was held up by a handler that blocks the event loop."""

HEARING = 2.0
"""How many times as long an idle worker pauses between two claims while it hears of new jobs by hints."""

LAST_CLAIM = 1.0
LAST_SETTLE = 5.0
"""Seconds that a stopping worker gives its last statements; a database that does not answer must not keep it."""


class Worker:
    """Runs the tasks of an outbox until it is stopped.

    :param outbox: the declared tasks; jobs of others are left alone.
    :param url: a libpq or SQLAlchemy URL of the database.
    :param observer: is told of every attempt.
    :ivar meter: what it has done since it started.
    """

    def __init__(
        self,
        outbox: Outbox,
        url: str,
        settings: WorkerSettings | None = None,
        *,
        observer: Observer | None = None,
    ) -> None:
        if not len(outbox):
            raise DeclarationError(
                "this outbox has no tasks; import the modules that declare them before the worker starts"
            )
        self.id: UUID = uuid4()
        self._outbox = outbox
        self._url = url
        self._settings = settings or WorkerSettings()
        outbox.verify()
        self._tasks = {task.name: task.retry.max_attempts for task in outbox}
        self._versions = {task.name: task.version for task in outbox}
        self._held: dict[object, Claim] = {}
        self._stop_asked = asyncio.Event()
        self._stop_now = asyncio.Event()
        self._wake = asyncio.Event()
        tally = Tally()
        self.meter = Meter(tally, {task.name: task.defaults.queue for task in outbox}, self._settings.queues)
        self._settler = Settler(Link(url, self._settings, "outbox settle"), self._held, self._wake.set, tally)
        self._runner = Runner(outbox, self._settings, self._settler, self._held, self._wake.set, tally, observer)
        self._heartbeat: Heartbeat | None = None
        self._longest_pause = self._settings.poll_max

    def stop(self) -> None:
        """Stop in good order: claim no more, hand back what has not started, let the rest end within the grace period.

        Asked a second time, the grace period is over at once.
        """
        (self._stop_now if self._stop_asked.is_set() else self._stop_asked).set()
        self._wake.set()

    @property
    def is_ready(self) -> bool:
        """Whether its last heartbeat reached the database less than a lease ago. From any thread."""
        appeared = None if self._heartbeat is None else self._heartbeat.appeared
        return appeared is not None and time.monotonic() - appeared < self._settings.lease

    @property
    def grace(self) -> float:
        """Seconds that running jobs get when the worker is asked to stop."""
        return self._settings.grace

    @property
    def farewell(self) -> float:
        """Seconds after the grace by which the worker has stopped, unless a handler blocks its event loop."""
        return self._settings.cancel_grace + LAST_CLAIM + LAST_SETTLE + children.FAREWELL

    def abandon(self) -> None:
        """Hand everything back, from another thread, when the event loop is blocked and will not do it.

        The process must exit right after. Returns within a few seconds, whether or not it worked.
        """
        if self._heartbeat is not None:
            outcomes = dict(self._settler.waiting())
            self._heartbeat.settle([(claim, outcomes.get(claim, RELEASED)) for claim in list(self._held.values())])
        events.emit(events.ERROR, "worker_abandoned", worker_id=self.id, left_running=len(self._runner))

    async def run(self) -> bool:
        """Work until stopped.

        :return: whether all handlers ended. If not, their jobs have been handed back, and the process should exit
            at once, since they are still running in it.
        :raises SchemaMismatch: if the database's schema is not what this release needs.
        """
        link = Link(self._url, self._settings, "outbox claim")
        try:
            return await self._work(link) if await self._wait_for_database(link) else True
        finally:
            await link.close()

    async def _declare(self, link: Link) -> None:
        while not self._stop_asked.is_set():
            try:
                await limit.declare(link, self._outbox.spoken_for, self._outbox.limits)
                await ticks.declare(link, list(self._tasks), self._outbox.schedules)
                break
            except FAILURES as exc:
                await link.pause(exc)

    async def _work(self, claim_link: Link) -> bool:
        events.emit(
            events.INFO, "worker_started", worker_id=self.id, queues=dict(self._settings.queues), tasks=len(self._tasks)
        )
        await self._declare(claim_link)
        heartbeat = self._heartbeat = Heartbeat(
            self._url,
            self._settings,
            self._held,
            presence=Presence(
                id=self.id, queues=self._settings.queues, tasks=self._versions, lease=self._settings.lease
            ),
            on_lost=self._runner.lease_lost,
            on_cancel=self._runner.cancel,
            on_fired=self._wake.set,
        )
        heartbeat.start()
        claiming = asyncio.create_task(self._claim_for_ever(claim_link), name="outbox-claim")
        loops = [
            asyncio.create_task(self._settler.run(), name="outbox-settle"),
            asyncio.create_task(self._watch_for_ever(), name="outbox-watch"),
        ]
        if self._settings.wake_up and claim_link.is_pooled:
            events.emit(events.INFO, "wake_up_off", reason="the database is behind a connection pooler")
        elif self._settings.wake_up:
            loops.append(asyncio.create_task(self._listen_for_ever(), name="outbox-listen"))
        try:
            await self._until_stop_asked(claiming, *loops)
            return await self._drain(claiming)
        finally:
            heartbeat.stop()
            await self._runner.end_children()
            for loop in (claiming, *loops):
                loop.cancel()
            await asyncio.gather(claiming, *loops, return_exceptions=True)
            await self._settler.close()
            await heartbeat.ended()

    async def _wait_for_database(self, link: Link) -> bool:
        while not self._stop_asked.is_set():
            try:
                rows = await link.fetch("select max(version) as version from outbox.schema_version")
            except asyncpg.UndefinedTableError:
                rows = []
            except FAILURES as exc:
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
        pause, turn, turns, marks = self._settings.poll_min, 0, Turns(), Marks()
        while not self._stop_asked.is_set():
            self._wake.clear()
            wanted = self._runner.wanted()
            if not wanted:
                await self._sleep(self._settings.poll_max)
                continue
            try:
                taken = await claims.take(
                    link,
                    wanted,
                    self._tasks,
                    self.id,
                    self._settings.lease,
                    levels=claims.levels(turn),
                    suspect=not self._runner.holds_suspect,
                    free=self._runner.free(),
                    turns=turns,
                    marks=marks,
                    versions=self._versions,
                )
            except FAILURES as exc:
                await link.pause(exc)
                continue
            turn += bool(taken)
            if self._runner.accept(taken, wanted) or marks.again:
                await asyncio.sleep(0)  # settles and handlers get their turn before more is claimed
                pause = self._settings.poll_min
                continue
            pause = self._settings.poll_min if taken else min(pause * 1.5, self._longest_pause)
            await self._sleep(pause if turns.again is None else min(pause, turns.again))

    async def _listen_for_ever(self) -> None:
        def pause_for(seconds: float) -> None:
            self._longest_pause = seconds

        longest = self._settings.poll_max
        await listener.listen(
            self._url,
            self._settings,
            self._wake.set,
            on_connected=lambda: pause_for(longest * HEARING),
            on_lost=lambda: pause_for(longest),
        )

    async def _watch_for_ever(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(WATCH)
            late = time.monotonic() - before - WATCH
            if late > LATE:
                events.emit(events.WARNING, "loop_blocked", seconds=round(late, 1))
            self._runner.release_stalled()
            if self._heartbeat is not None and not self._heartbeat.counted:
                self._hand_over_counts(self._heartbeat)

    def _hand_over_counts(self, heartbeat: Heartbeat) -> None:
        if counted := self.meter.take():
            heartbeat.counted.append(counted)

    async def _drain(self, claiming: asyncio.Task[None]) -> bool:
        events.emit(events.INFO, "worker_stopping", worker_id=self.id, running=len(self._runner))
        if self._heartbeat is not None:
            self._heartbeat.stopping = True
        self._runner.close()
        await self._ended_within(self._settings.grace, self._stop_now)
        self._runner.interrupt_all()
        await self._ended_within(self._settings.cancel_grace)
        left = self._runner.leave_behind()
        # What was being claimed when the stop came must still be handed back.
        await asyncio.wait({claiming}, timeout=LAST_CLAIM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._settler.emptied(), LAST_SETTLE)
        if self._heartbeat is not None:
            self._hand_over_counts(self._heartbeat)
        events.emit(events.INFO, "worker_stopped", worker_id=self.id, left_running=left, unsettled=len(self._held))
        return not left

    async def _ended_within(self, seconds: float, sooner: asyncio.Event | None = None) -> None:
        waits: set[asyncio.Task[object]] = {asyncio.create_task(self._runner.ended())}
        if sooner is not None:
            waits.add(asyncio.create_task(sooner.wait()))
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    async def _sleep(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds * random.uniform(0.8, 1.2)):
                await self._wake.wait()
