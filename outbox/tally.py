"""Counts the attempts of one worker: how many ended how, how long they had waited and how long they ran.

Kept in memory and written every few seconds (see ``statistic``), so that a job costs a microsecond and no row. What a
worker that is killed had not written yet is lost; no job is.
"""

from bisect import bisect_left
from dataclasses import dataclass, field

from outbox.outcome import Finished, Outcome

BUCKETS = 48

BOUNDS = tuple(2 ** (n / 2) / 1000 for n in range(BUCKETS - 1))
"""Up to how many seconds each bucket but the last counts: a millisecond, and by half a power of two up to three hours.

A quantile read from buckets is at most a fifth beside the true one.
"""


@dataclass(slots=True)
class Counts:
    """Attempts of one task in one queue that ended in the same way.

    :ivar waits: how many waited how long between being due and being claimed, by bucket.
    :ivar runs: how many ran how long, by bucket.
    """

    count: int = 0
    waits: list[int] = field(default_factory=lambda: [0] * BUCKETS)
    runs: list[int] = field(default_factory=lambda: [0] * BUCKETS)

    def __add__(self, other: "Counts") -> "Counts":
        waits = [mine + theirs for mine, theirs in zip(self.waits, other.waits, strict=True)]
        runs = [mine + theirs for mine, theirs in zip(self.runs, other.runs, strict=True)]
        return Counts(self.count + other.count, waits, runs)


Key = tuple[str, str, str]
"""Queue, task and outcome."""


class Tally:
    """The counts of one worker since they were last taken.

    :ivar leases_lost: how many claims somebody else has taken from it, since it started.
    """

    def __init__(self) -> None:
        # One flat dict by queue, task, outcome and both buckets: half the price of counting into lists at once.
        self._noted: dict[tuple[str, str, str, int, int], int] = {}
        self.leases_lost = 0

    def note(self, queue: str, task: str, outcome: Outcome, waited: float, ran: float) -> None:
        """Count an attempt that has ended; times are in seconds. One that was only handed back is none."""
        name = _name(outcome)
        if name is not None:
            key = (queue, task, name, bisect_left(BOUNDS, waited), bisect_left(BOUNDS, ran))
            self._noted[key] = self._noted.get(key, 0) + 1

    def take(self) -> dict[Key, Counts]:
        """What has been counted; counting begins anew."""
        noted, self._noted = self._noted, {}
        taken: dict[Key, Counts] = {}
        for (queue, task, name, wait, run), count in noted.items():
            counts = taken.setdefault((queue, task, name), Counts())
            counts.count += count
            counts.waits[wait] += count
            counts.runs[run] += count
        return taken


def _name(outcome: Outcome) -> str | None:
    if isinstance(outcome, Finished):
        return outcome.state.value
    if outcome.error is not None:
        return "retried"
    return "snoozed" if outcome.delay else None
