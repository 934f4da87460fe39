"""Claim limited jobs: in turns, so that a tenant's million jobs do not keep another's ten waiting.

A turn is a task's in a queue, or a ``limit_key``'s within that. Each claim goes on where the last one ended, gives one
job to each turn that has one due, then another, until there are no slots, no room or no jobs. What a limit gives is
known under its lock, which is only ever tried: where another worker has it, there is no room just now.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from uuid import UUID

import asyncpg

from outbox import sql
from outbox.connection import Link

CIRCLE = 100
"""Turns at most that one claim looks at in a queue; the next claim goes on behind them."""

Room = tuple[str, str, bool, str]
"""What a limit holds for: scope, name, whether per key, and the key."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Whose turn it is, and how many of its jobs are due, up to what was asked for."""

    queue: str
    task: str
    key: str
    due: int = 0

    def rooms(self) -> tuple[Room, ...]:
        """What may limit its jobs."""
        return (
            ("queue", self.queue, False, ""),
            ("queue", self.queue, True, self.key),
            ("task", self.task, False, ""),
            ("task", self.task, True, self.key),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """On what terms a worker claims.

    :ivar known: its tasks with the highest payload version that it knows of each, as ``sql.CLAIM`` takes them.
    :ivar lease: seconds that its claims are good for.
    :ivar levels: the priorities in the order in which they are taken.
    :ivar suspect_from: how many workers a suspect has lost.
    :ivar suspect: whether one of the jobs may be a suspect.
    """

    known: str
    worker_id: UUID
    lease: float
    levels: Sequence[int]
    suspect_from: int
    suspect: bool

    def after(self, rows: Sequence[asyncpg.Record]) -> "Terms":
        """On what terms to go on when these have been taken."""
        return replace(self, suspect=self.suspect and not any(row["suspect"] for row in rows))


@dataclass(slots=True)
class Turns:
    """Where the turns of one worker stand.

    :ivar again: seconds until a token will be there that is missing now; None if none is.
    :ivar owed: whether limited jobs wait and other ones took all the room; then it is theirs first the next time.
    """

    again: float | None = None
    owed: bool = False
    _last: dict[str, Turn] = field(default_factory=dict)

    async def take(self, link: Link, wanted: Mapping[str, int], terms: Terms) -> list[asyncpg.Record]:
        """Claim limited jobs, for each queue at most as many as wanted."""
        self.again = None
        async with link.transaction():
            turns = await self._look(link, wanted, terms)
            room, rated = await self._rooms(link, turns) if any(turn.due for turn in turns) else ({}, set())
            shares = share(turns, wanted, room)
            self._move_on(turns, wanted, shares)
            if not shares:
                return []
            rows = await link.fetch(
                sql.CLAIM_LIMITED,
                [turn.queue for turn in shares],
                [turn.task for turn in shares],
                [turn.key for turn in shares],
                list(shares.values()),
                list(terms.levels),
                terms.worker_id,
                terms.lease,
                terms.suspect_from,
                terms.suspect,
                terms.known,
            )
            await _spend(link, rows, rated)
        return rows

    async def _look(self, link: Link, wanted: Mapping[str, int], terms: Terms) -> list[Turn]:
        last = [self._last.get(queue, Turn(queue, "", "")) for queue in wanted]
        rows = await link.fetch(
            sql.TURNS,
            list(wanted),
            list(wanted.values()),
            [turn.task for turn in last],
            [turn.key for turn in last],
            terms.known,
            list(terms.levels),
            CIRCLE,
        )
        return [Turn(row["queue"], row["task"], row["key"], row["count"]) for row in rows]

    def _move_on(self, turns: Sequence[Turn], wanted: Mapping[str, int], shares: Mapping[Turn, int]) -> None:
        """Note whose turn came last: of those who got something, or of all while slots are left and others are next."""
        seen = Counter(turn.queue for turn in turns)
        used: Counter[str] = Counter()
        for turn, count in shares.items():
            used[turn.queue] += count
        for turn in turns:
            more = seen[turn.queue] >= CIRCLE and used[turn.queue] < wanted[turn.queue]
            if more or turn in shares:
                self._last[turn.queue] = turn

    async def _rooms(self, link: Link, turns: Sequence[Turn]) -> tuple[dict[Room, int], set[Room]]:
        asked = {room for turn in turns if turn.due for room in turn.rooms()}
        rows = await link.fetch(sql.ROOMS, *map(list, zip(*asked, strict=True)))
        rooms: dict[Room, int] = {}
        rated: set[Room] = set()
        for row in rows:
            room = (row["scope"], row["name"], row["per_key"], row["key"])
            if row["room"] is not None:
                rooms[room] = row["room"]
            if row["has_rate"]:
                rated.add(room)
            if row["again"] is not None:
                self.again = min(row["again"], self.again or row["again"])
        return rooms, rated


def share(turns: Sequence[Turn], wanted: Mapping[str, int], rooms: Mapping[Room, int]) -> dict[Turn, int]:
    """How many jobs each turn gets: one after the other, as long as its queue has slots and its limits have room.

    :param wanted: free slots of each queue.
    :param rooms: how many jobs the limits let start; what is not in it is not limited.
    """
    free, left = dict(wanted), dict(rooms)
    given: Counter[Turn] = Counter()
    going = [turn for turn in turns if turn.due]
    while going:
        going = [turn for turn in going if given[turn] < turn.due and _give(turn, free, left, given)]
    return dict(given)


def _give(turn: Turn, free: dict[str, int], left: dict[Room, int], given: Counter[Turn]) -> bool:
    limits = [room for room in turn.rooms() if room in left]
    if free[turn.queue] <= 0 or any(left[room] <= 0 for room in limits):
        return False
    free[turn.queue] -= 1
    for room in limits:
        left[room] -= 1
    given[turn] += 1
    return True


async def _spend(link: Link, rows: Sequence[asyncpg.Record], rated: set[Room]) -> None:
    spent = Counter(room for row in rows for room in _rooms_of(row) if room in rated)
    if spent:
        rooms = sorted(spent)
        await link.fetch(sql.SPEND, *map(list, zip(*rooms, strict=True)), [spent[room] for room in rooms])


def _rooms_of(row: asyncpg.Record) -> Iterator[Room]:
    yield from Turn(row["queue"], row["task"], row["limit_key"]).rooms()
