"""Outcomes on their way into the database: written in batches that form by themselves while the last one is written."""

import asyncio
from collections import deque
from collections.abc import Callable

from outbox import claim as claims
from outbox import events
from outbox.claim import Settlement
from outbox.connection import FAILURES, Link, is_lost
from outbox.context import Claim, Stop
from outbox.outcome import Outcome
from outbox.tally import Tally

BATCH = 1000


class Settler:
    """Writes outcomes at once when idle, and everything that has come meanwhile when not; it never waits for company.

    A lost database is waited out; the outcomes stay here. The fence decides whether they still count.

    :param held: every claim of this worker by its job's id; what has been settled is taken out of it.
    :param wake: called when what has been written has let other jobs run.
    :param tally: counts leases that were lost.
    """

    def __init__(self, link: Link, held: dict[object, Claim], wake: Callable[[], None], tally: Tally) -> None:
        self._link = link
        self._held = held
        self._wake = wake
        self._tally = tally
        self._outcomes: deque[Settlement] = deque()
        self._ready = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return len(self._outcomes)

    def put(self, claim: Claim, outcome: Outcome) -> None:
        """Take over an outcome; it is written soon."""
        self._outcomes.append((claim, outcome))
        self._ready.set()
        self._empty.clear()

    def waiting(self) -> list[Settlement]:
        """What has not been taken up for writing yet."""
        return list(self._outcomes)

    async def close(self) -> None:
        """Close the connection."""
        await self._link.close()

    async def emptied(self) -> None:
        """Return once everything put so far has been written."""
        await self._empty.wait()

    async def run(self) -> None:
        """Write outcomes until cancelled."""
        while True:
            await self._ready.wait()
            batch = [self._outcomes.popleft() for _ in range(min(BATCH, len(self._outcomes)))]
            if not self._outcomes:
                self._ready.clear()
            if batch:
                await self._write(batch)
            if not self._outcomes:
                self._empty.set()

    async def _write(self, batch: list[Settlement]) -> None:
        for claim in await self._settled(batch):
            self._tally.leases_lost += claim.stop is not Stop.LEASE_LOST  # else the runner has counted it
            events.emit(events.WARNING, "lease_lost", job_id=claim.id, task=claim.task, fence=claim.fence)
        for claim, _ in batch:
            if self._held.get(claim.id) is claim:
                del self._held[claim.id]
        if any(claim.lets_others_run for claim, _ in batch):
            self._wake()

    async def _settled(self, batch: list[Settlement]) -> list[Claim]:
        write = claims.settle
        while True:
            try:
                return await write(self._link, batch)
            except FAILURES as exc:
                if is_lost(exc) or write is claims.settle_one_by_one:
                    await self._link.pause(exc)
                else:
                    write = claims.settle_one_by_one  # one outcome is bad: the others must not suffer for it
