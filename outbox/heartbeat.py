"""The worker's heartbeat: a thread with an event loop and a connection of its own.

A handler that blocks the worker's event loop for longer than the lease must not lose it, so nothing here depends on
that loop: leases are renewed, progress is written, cancel requests are read, and the jobs of dead workers are rescued.
"""

import asyncio
import contextlib
import random
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import asyncpg

from outbox import claim as claims
from outbox import events, maintenance, sql, statistic, ticks
from outbox.claim import Settlement
from outbox.connection import FAILURES, Link
from outbox.context import Claim
from outbox.presence import Presence
from outbox.settings import WorkerSettings
from outbox.tally import Counts, Key

TELL = 1.0
"""Seconds between two looks at progress and cancel requests."""

KEEP_PARTITIONS = 600.0
PARTITION_BUSY = 10.0
"""Seconds until the next try where somebody read the table just then."""

MEND_GROUPS = 60.0

BUSY = 0.02
"""Seconds until the next look when a schedule is due and somebody else has it."""

FIRE = 5.0
"""Seconds at most between two looks for schedules that are due; one that is made or resumed is so late at first."""

COUNT = 5.0
"""Seconds between two times that what was counted is written."""

RECORD = 60.0
"""Seconds between two times that it is written down how queues stand, by one of all workers."""

FAREWELL = 2.0
"""Seconds that a stopping worker gives its heartbeat to say goodbye."""

REFUSED = ("22", "23", "42")
"""Classes of errors that are a statement's own, and come again with it: a value, a rule, a right or a table."""

LAST_WORDS = 5.0
"""Seconds at most to hand jobs back when the worker has to be left."""


@dataclass(slots=True)
class _Duty:
    """Something done again and again: ``every`` seconds, or after those that ``perform`` answers.

    The start differs between workers.
    """

    every: float
    perform: Callable[[], Awaitable[float | None]]
    due: float


class Heartbeat:
    """Runs beside the worker from ``start`` to ``stop``.

    :param held: every claim of the worker by its job's id. Read here, changed by the worker only.
    :param presence: what the worker says of itself; the schedules of the tasks that it knows are fired here.
    :param on_lost: called in the worker's loop with a claim whose lease somebody else has taken.
    :param on_cancel: called in the worker's loop with a claim whose job a person wants cancelled.
    :param on_fired: called in the worker's loop when a schedule has enqueued jobs.
    """

    def __init__(
        self,
        url: str,
        settings: WorkerSettings,
        held: Mapping[object, Claim],
        *,
        presence: Presence,
        on_lost: Callable[[Claim], None],
        on_cancel: Callable[[Claim], None],
        on_fired: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._held = held
        self._presence = presence
        self._tasks = list(presence.tasks)
        self._on_lost = on_lost
        self._on_cancel = on_cancel
        self._on_fired = on_fired
        self._url = url
        self._worker_loop = asyncio.get_running_loop()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._rescue_from = 0.0
        self.stopping = False
        self.counted: deque[Mapping[Key, Counts]] = deque()
        """What the worker has counted, until it is written."""
        self.appeared: float | None = None
        """When it last said in the database that it is there, by the monotonic clock; None before the first time."""
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="outbox-heartbeat", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end; it does within a second, or is left behind."""
        self._stopped.set()
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended already
                self._loop.call_soon_threadsafe(self._rest.set)

    async def ended(self) -> None:
        """Return once the thread has ended, or has had its time to."""
        await asyncio.to_thread(self._thread.join, FAREWELL)

    def settle(self, settlements: Sequence[Settlement]) -> None:
        """Settle from any thread, in place of a worker whose event loop is blocked. The heartbeat ends with it."""
        self.stop()
        self._thread.join(self._settings.lease / 3)
        try:
            asyncio.run(asyncio.wait_for(self._settle(settlements), LAST_WORDS))
        except FAILURES as exc:
            # The leases run out; another worker rescues the jobs then.
            events.emit(events.ERROR, "database_lost", link="outbox heartbeat", error=exc)

    async def _settle(self, settlements: Sequence[Settlement]) -> None:
        link = Link(self._url, self._settings, "outbox heartbeat")
        await claims.settle_one_by_one(link, settlements)
        await link.close()

    def _run(self) -> None:
        asyncio.run(self._beat())

    async def _beat(self) -> None:
        self._rest = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        # A beat and its longest wait must fit into the lease twice.
        self._link = Link(
            self._url,
            self._settings,
            "outbox heartbeat",
            timeout=self._settings.lease / 6,
            lock_timeout=min(1.0, self._settings.lease / 12),
        )
        now, beat = time.monotonic(), self._settings.beat
        duties = [
            _Duty(beat, self._renew, now + beat),
            _Duty(min(TELL, beat), self._tell, now + min(TELL, beat)),
            _Duty(beat, self._rescue, now + beat * random.random()),
            _Duty(KEEP_PARTITIONS, self._keep_partitions, now + random.random()),
            _Duty(MEND_GROUPS, self._mend_groups, now + MEND_GROUPS * random.random()),
            _Duty(FIRE, self._fire, now),
            _Duty(beat, self._appear, now),
            _Duty(COUNT, self._count, now + COUNT * random.random()),
            _Duty(RECORD, self._record, now + RECORD * random.random()),
        ]
        while not self._stopped.is_set():
            now = time.monotonic()
            try:
                for duty in duties:
                    if duty.due <= now:
                        duty.due = now + await _perform(duty)
            except Exception as exc:  # noqa: BLE001 - a heartbeat that stops for any reason is a worker that dies
                # Others may have lost the database too: they get a lease's time to renew before they count as dead.
                # That somebody holds a lock is no such thing.
                if not isinstance(exc, asyncpg.LockNotAvailableError):
                    self._rescue_from = time.monotonic() + self._settings.lease
                await self._link.pause(exc)
                continue
            pause = max(0.01, min(0.25, min(duty.due for duty in duties) - time.monotonic()))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._rest.wait()
        await self._say_goodbye()

    async def _say_goodbye(self) -> None:
        try:
            async with asyncio.timeout(FAREWELL):
                await self._count()
                await self._presence.leave(self._link)
        except FAILURES as exc:
            events.emit(events.DEBUG, "heartbeat_alone", error=exc)
        await self._link.close()

    async def _renew(self) -> None:
        claims = list(self._held.values())
        if not claims:
            return
        rows = await self._link.fetch(
            sql.RENEW, [claim.id for claim in claims], [claim.fence for claim in claims], self._settings.lease
        )
        for row in rows:
            claim = claims[row["n"] - 1]
            if not row["ours"]:
                self._tell_worker(self._on_lost, claim)
            elif row["cancelled"]:
                self._tell_worker(self._on_cancel, claim)

    async def _tell(self) -> None:
        claims = list(self._held.values())
        news = [(claim, said) for claim in claims if (said := (claim.progress, claim.kept)) != claim.told]
        if news:
            await self._link.fetch(
                sql.SAY,
                [claim.id for claim, _ in news],
                [claim.fence for claim, _ in news],
                [progress for _, (progress, _) in news],
                [kept for _, (_, kept) in news],
            )
            for claim, said in news:
                claim.told = said
        if claims:
            by_id = {claim.id: claim for claim in claims}
            for row in await self._link.fetch(sql.CANCELS, list(by_id)):
                self._tell_worker(self._on_cancel, by_id[row["id"]])

    async def _rescue(self) -> None:
        if time.monotonic() < self._rescue_from:
            return
        await maintenance.rescue(self._link)

    async def _keep_partitions(self) -> float | None:
        done = await maintenance.keep_partitions(self._link, self._settings.retention_days)
        return None if done else PARTITION_BUSY

    async def _appear(self) -> None:
        await self._presence.appear(self._link, stopping=self.stopping)
        self.appeared = time.monotonic()

    async def _count(self) -> None:
        while self.counted:
            await statistic.write(self._link, self.counted[0])
            self.counted.popleft()

    async def _record(self) -> None:
        await statistic.record(self._link)

    async def _mend_groups(self) -> None:
        await maintenance.mend_groups(self._link)

    async def _fire(self) -> float | None:
        fired = 0
        wait = await ticks.seconds_to_next(self._link, self._tasks)
        if wait is not None and wait <= 0:
            fired = await ticks.fire_due(self._link, self._tasks)
            wait = await ticks.seconds_to_next(self._link, self._tasks)
        if fired:
            self._tell_worker(self._on_fired)
        if wait is None:
            return None
        return max(0.0 if fired else BUSY, min(wait, FIRE))

    def _tell_worker(self, tell: Callable[..., None], *what: Claim) -> None:
        try:
            self._worker_loop.call_soon_threadsafe(tell, *what)
        except RuntimeError as exc:  # the worker's loop is closed: nobody is left to be told
            events.emit(events.DEBUG, "heartbeat_alone", error=exc)


async def _perform(duty: _Duty) -> float:
    """Do it; in how many seconds it is due again.

    What the database refuses for good, for a right or a table that is missing, keeps no other duty from being done.
    """
    try:
        after = await duty.perform()
    except asyncpg.PostgresError as exc:
        if (exc.sqlstate or "")[:2] not in REFUSED:
            raise
        name = getattr(duty.perform, "__name__", "").strip("_")
        events.emit(events.ERROR, "duty_failed", duty=name, error=f"{type(exc).__name__}: {exc}")
        return max(duty.every, 1.0)
    return duty.every if after is None else after
