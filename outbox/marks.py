"""The low-water mark: where a claim begins to look, so that it does not walk over all that was claimed before.

As long as anybody holds a snapshot of the database, index entries of jobs that are long gone cannot be removed, and a
claim that began at the beginning would walk over every one of them: a queue that is slower with each job. So each claim
begins where the last one has left nothing, in each queue and priority.

A job's position, its ``run_at``, is taken before its transaction commits. What has not been seen yet may therefore lie
before what has, if it is of a transaction that was running. Each claim answers which ones were (its own snapshot), and
since a transaction can have written nothing at a position earlier than its own beginning:

* The mark does not pass the beginning of a transaction that still runs.
* It does pass one that has run for ``PATIENCE`` seconds, so that one that is left open holds nobody up. Once that has
  ended, the next claim begins where it did.
* Whatever returns to waiting, or is unblocked, gets a position of that moment.

What remains is jobs passed over because somebody had locked them and then did not take them (a worker that died between
two statements, a person's transaction that was rolled back), and rows made by hand with a position in the past: every
``SWEEP`` seconds a claim begins at the beginning. A mark is a worker's own and lives in its memory: no two workers have
to agree on anything.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

Position = tuple[datetime, UUID]

ZERO = UUID(int=0)
FIRST: Position = (datetime.min.replace(tzinfo=UTC), ZERO)
"""Before every job."""

PATIENCE = timedelta(seconds=1)

MARGIN = timedelta(seconds=0.1)
"""A statement reads the clock a little before its transaction gets a number by which others can see that it runs."""

SWEEP = 5.0
SWEEPS_SHARE = 0.02
"""Of a worker's time at most that claims from the beginning may take; where they are slow, they become rare."""


@dataclass(frozen=True, slots=True)
class View:
    """What one claim saw besides jobs.

    :ivar now: the database's clock.
    :ivar snapshot: its snapshot, as ``pg_snapshot`` is written.
    :ivar paused: the queues that it did not look at.
    :ivar arrivals: whether jobs wait to be let into their groups.
    """

    now: datetime
    snapshot: str
    paused: frozenset[str] = frozenset()
    arrivals: bool = False


class Marks:
    """Where the claims of one worker begin.

    :ivar again: whether the next claim may find what has been passed by, and should come at once.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin at the beginning."""
        self.again = False
        self._reached: dict[tuple[str, int], Position] = {}
        self._arrivals = FIRST
        self._floor = FIRST
        self._now: datetime | None = None
        self._running: dict[int, Position] = {}
        self._passed: set[int] = set()
        self._sweep_due = time.monotonic() + SWEEP
        self._sweeps_since: float | None = None
        self._suspects_left = False

    def begin(self, queues: Iterable[str], levels: Sequence[int], *, suspect: bool = True) -> list[list[Position]]:
        """Where the next claim begins, in each queue and each priority.

        :param suspect: whether it may take a suspect; those that others had to pass over are then to be found again.
        """
        if suspect and self._suspects_left:
            self.forget()
        self._suspects_left = not suspect
        if self._sweeps_since is None and time.monotonic() >= self._sweep_due:
            self._sweeps_since = time.monotonic()
        if self._sweeps_since is not None:
            return [[FIRST] * len(levels) for _ in queues]
        return [[min(self._reached.get((queue, level), FIRST), self._floor) for level in levels] for queue in queues]

    @property
    def arrivals(self) -> datetime:
        """Where it begins to look for jobs that wait to be let into their groups."""
        return FIRST[0] if self._sweeps_since is not None else min(self._arrivals, self._floor)[0]

    def note(
        self, wanted: Mapping[str, int], levels: Sequence[int], rows: Sequence[Mapping[str, Any]], view: View
    ) -> None:
        """Take in what a claim has brought.

        :param wanted: how many jobs it asked for in each queue.
        :param levels: the priorities, in the order in which it took them.
        :param rows: the jobs that it took.
        """
        if self._now is not None and view.now < self._now:  # another server, or its clock was set back
            self.forget()
        self._reach(wanted, levels, rows, view)
        self._watch(view)
        if self._sweeps_since is not None:
            now = time.monotonic()
            self._sweep_due = now + max(SWEEP, (now - self._sweeps_since) / SWEEPS_SHARE)
            self._sweeps_since = None

    def _reach(
        self, wanted: Mapping[str, int], levels: Sequence[int], rows: Sequence[Mapping[str, Any]], view: View
    ) -> None:
        end: Position = (view.now, ZERO)
        if not view.arrivals:
            self._arrivals = end
        elif self._sweeps_since is not None:
            self._arrivals = FIRST
        if any(row["suspect"] for row in rows):
            return  # one of them was taken, and others perhaps passed over
        for queue, slots in wanted.items():
            if queue in view.paused:
                continue
            last: dict[int, Position] = {}
            mine = [row for row in rows if row["queue"] == queue]
            for row in mine:
                position = (row["run_at"], row["id"])
                last[row["priority"]] = max(position, last.get(row["priority"], FIRST))
            # Filled up, it has not looked any further than the last job of the last priority that it came to.
            left = len(last) if len(mine) >= slots else len(levels) + 1
            for level in levels:
                left -= level in last
                self._reached[queue, level] = end if left else last[level]
                if not left:
                    break

    def _watch(self, view: View) -> None:
        began = FIRST if self._now is None else (self._now - MARGIN, ZERO)
        now = running(view.snapshot)
        ended = self._passed - now
        self.again = bool(ended)
        if ended:
            since = min(self._running[each] for each in ended)
            self._reached = {where: min(position, since) for where, position in self._reached.items()}
            self._arrivals = min(self._arrivals, since)
        self._now = view.now
        self._running = {each: self._running.get(each, began) for each in now}
        self._passed = {each for each, since in self._running.items() if since[0] < view.now - PATIENCE}
        waited_for = [since for each, since in self._running.items() if each not in self._passed]
        self._floor = min([(view.now - MARGIN, ZERO), *waited_for])


def running(snapshot: str) -> set[int]:
    """The transactions that run in a snapshot, written ``xmin:xmax:xip,xip,...``."""
    return {int(each) for each in snapshot.split(":")[2].split(",") if each}
