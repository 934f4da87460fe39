"""What a worker has done since it started: its counts, added up each time they are taken, for whoever asks it.

Labels are bounded: tasks that are declared, queues that the worker serves, and never what a row says.
"""

from collections.abc import Iterable, Mapping
from itertools import islice

from outbox.tally import Counts, Key, Tally

MOST_QUEUES = 200
"""Queues at most that figures are told of each; those of the others are told as one."""

OUTCOMES = ("succeeded", "failed", "cancelled", "retried", "snoozed")

OTHER = "other"
UNKNOWN = "unknown"


class Meter:
    """Takes what a worker counts, and remembers all of it.

    What may come is there from the start with 0: of a count that appears with 1 nobody would see that it has grown.

    :param tasks: those that the worker knows, and the queue that each declares; any other task is ``unknown``.
    :param queues: those that it serves; any other is ``other``, and so are those beyond the 200th.
    """

    def __init__(self, tally: Tally, tasks: Mapping[str, str], queues: Iterable[str]) -> None:
        self._tally = tally
        self._tasks = frozenset(tasks)
        self._queues = frozenset(islice(queues, MOST_QUEUES))
        self._total: Mapping[Key, Counts] = {
            (queue, task, outcome): Counts()
            for task, queue in tasks.items()
            if queue in self._queues
            for outcome in OUTCOMES
        }

    @property
    def leases_lost(self) -> int:
        """How many claims somebody else has taken from this worker."""
        return self._tally.leases_lost

    def take(self) -> Mapping[Key, Counts]:
        """What was counted since the last time."""
        taken = self._tally.take()
        total = dict(self._total)
        for (queue, task, outcome), counts in taken.items():
            key = self._label(queue, task, outcome)
            total[key] = total.get(key, Counts()) + counts
        self._total = total  # as one, for another thread may be reading
        return taken

    def total(self) -> Mapping[Key, Counts]:
        """What was counted since the worker started, to a few seconds ago. From any thread."""
        return self._total

    def _label(self, queue: str, task: str, outcome: str) -> Key:
        return queue if queue in self._queues else OTHER, task if task in self._tasks else UNKNOWN, outcome
