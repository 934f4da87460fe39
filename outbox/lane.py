"""One queue in one worker: its slots, the claims that wait for one, and how many to hold ready."""

from collections import deque
from typing import Generic, TypeVar

C = TypeVar("C")
"""A claim; a lane does not look into it."""

AHEAD = 0.1
"""Seconds of work, at the pace of late, that a lane holds claimed beyond its free slots."""

STALLED = 1.0
"""Seconds without a start after which claims that wait are handed back for other workers."""


class Lane(Generic[C]):
    """Fast jobs are claimed ahead in large batches, slow ones only when a slot is free.

    :ivar running: jobs of this queue that run now.
    :ivar waiting: claims that wait for a slot.
    :ivar hungry: whether the last claim brought all that was asked for, so that more are probably there.
    """

    def __init__(self, name: str, slots: int, prefetch: int) -> None:
        self.name = name
        self.slots = slots
        self.running = 0
        self.waiting: deque[C] = deque()
        self.hungry = True
        self._prefetch = prefetch
        self._ahead = 0
        self._ends = 0
        self._busy = 0.0
        self._measured_at = 0.0
        self._started_at = 0.0

    def wants(self, now: float) -> int:
        """How many claims to ask for: free slots and what runs in the next ``AHEAD`` seconds; 0 while half is there."""
        self._measure(now)
        if self.waiting and len(self.waiting) * 2 > self._ahead:
            return 0
        return max(0, self.slots - self.running + self._ahead - len(self.waiting))

    @property
    def free(self) -> int:
        """Slots that are free, and that no claim waits for."""
        return max(0, self.slots - self.running - len(self.waiting))

    def next(self, now: float) -> C | None:
        """The next claim to start, if there is one and a free slot; the slot is then taken."""
        if not self.waiting or self.running >= self.slots:
            return None
        self.running += 1
        self._started_at = now
        return self.waiting.popleft()

    def give_back(self, seconds: float) -> None:
        """A job has ended, so long after its start: its slot is free."""
        self.running -= 1
        self._ends += 1
        self._busy += seconds

    def has_room(self) -> bool:
        """Whether it is time to claim again."""
        return self.running < self.slots if not self._ahead else len(self.waiting) * 2 <= self._ahead

    def stalled(self, now: float) -> list[C]:
        """Claims that have waited behind slow jobs for too long; they are the lane's no more."""
        if not self.waiting or now - self._started_at < STALLED:
            return []
        self._ahead = 0
        return self.clear()

    def clear(self) -> list[C]:
        """All claims that wait; they are the lane's no more."""
        claims, self.waiting = list(self.waiting), deque()
        return claims

    def _measure(self, now: float) -> None:
        elapsed = now - self._measured_at
        if elapsed >= 0.02:
            # Jobs that ran side by side end together, and a burst of ends says nothing about the pace; jobs that block
            # each other are slower than their slots promise. The lower of both figures is true in either case.
            pace = min(self._ends / elapsed, self.slots * self._ends / self._busy) if self._busy else 0.0
            self._ahead = min(self._prefetch, int(pace * AHEAD))
            self._ends, self._busy, self._measured_at = 0, 0.0, now
