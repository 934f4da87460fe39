"""Take jobs, and settle how their attempts ended; each guarded by the fence."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from uuid import UUID

import asyncpg

from outbox import events, sql
from outbox.connection import FAILURES, Link, is_lost
from outbox.context import Claim
from outbox.errors import ResultNotStored
from outbox.job import MAX_LOST, State
from outbox.marks import Marks, View
from outbox.newjob import PRIORITIES
from outbox.outcome import Error, Finished, Outcome, Postponed
from outbox.turns import Terms, Turns

Settlement = tuple[Claim, Outcome]

ADMITTED = 1000
"""Jobs at most that are let into their groups between two claims."""

AGEING = 16
"""Turns of claiming in which each priority comes first at least once."""

_TURNS = {AGEING - 1 - 4 * n: priority for n, priority in enumerate(reversed(PRIORITIES[1:]))}


async def take(
    link: Link,
    wanted: Mapping[str, int],
    tasks: Mapping[str, int],
    worker_id: UUID,
    lease: float,
    *,
    levels: Sequence[int] = PRIORITIES,
    suspect: bool = True,
    free: Mapping[str, int] | None = None,
    turns: Turns | None = None,
    marks: Marks | None = None,
    versions: Mapping[str, int] | None = None,
) -> list[Claim]:
    """Claim jobs that are due, for each queue at most as many as wanted, by priority and the longest due first.

    :param tasks: the tasks that this worker knows, with the attempts they allow; others are left for those who do.
    :param lease: seconds that the claims are good for.
    :param levels: the priorities in the order in which they are taken.
    :param marks: where to begin in each queue; from the beginning if not given.
    :param suspect: whether one of them may be a job that fails if it loses one worker more.
    :param free: the free slots of each queue: as many limited jobs at most, so that none is held up here that could run
        elsewhere; as many as wanted unless given.
    :param turns: where the turns of limited jobs stand; they begin anew unless given.
    :param versions: the highest payload version that this worker knows of each task; 1 where nothing is said.
    """
    terms = Terms(
        known=json.dumps({task: (versions or {}).get(task, 1) for task in tasks}),
        worker_id=worker_id,
        lease=lease,
        levels=levels,
        suspect_from=MAX_LOST - 1,
        suspect=suspect,
    )
    rows: list[asyncpg.Record] = []
    try:
        await _take(link, wanted, wanted if free is None else free, terms, turns or Turns(), marks or Marks(), rows)
    except FAILURES:
        if not rows:
            raise
        # What has been claimed must run all the same; the next claim meets with the failure again, or it is over.
    claims = [
        Claim(
            id=row["id"],
            task=row["task"],
            queue=row["queue"],
            priority=row["priority"],
            run_at=row["run_at"],
            payload=row["payload"],
            attempt=row["attempt"] + 1,
            max_attempts=row["max_attempts"] or tasks[row["task"]],
            fence=row["fence"],
            created_at=row["created_at"],
            worker_id=worker_id,
            waited=row["waited"],
            is_suspect=row["suspect"],
            version=row["version"],
            checkpoint=row["checkpoint"],
            group=row["group_key"],
            limited="limit_key" in row,
            followed=row["followed"],
            headers=row["headers"],
        )
        for row in rows
    ]
    claims.sort(key=_order)
    return claims


async def _take(
    link: Link,
    wanted: Mapping[str, int],
    free: Mapping[str, int],
    terms: Terms,
    turns: Turns,
    marks: Marks,
    rows: list[asyncpg.Record],
) -> None:
    """Fill ``rows`` with jobs without limits, with those that may run now in their groups, and with limited ones.

    Where the others left no room for limited ones, these come first the next time.
    """
    turns.again = None
    if turns.owed:
        rows += await turns.take(link, wanted, terms)
    turns.owed = False
    waiting = await _plain(link, wanted, terms, marks, rows)
    if "groups" in waiting and await _admit(link, marks):
        await _plain(link, wanted, terms, marks, rows)
    if "limits" in waiting:
        still = _left(free, rows)
        turns.owed = len(still) < len(free)
        if still:
            rows += await turns.take(link, still, terms.after(rows))


async def _plain(
    link: Link, wanted: Mapping[str, int], terms: Terms, marks: Marks, rows: list[asyncpg.Record]
) -> set[str]:
    """Add jobs without limits to what has been taken; what else waits, of groups and limits."""
    still = _left(wanted, rows)
    if not still:
        return set()
    suspect = terms.after(rows).suspect
    begin = marks.begin(still, terms.levels, suspect=suspect)
    came = await link.fetch(
        sql.CLAIM,
        list(still),
        list(still.values()),
        list(terms.levels),
        terms.known,
        terms.worker_id,
        terms.lease,
        terms.suspect_from,
        suspect,
        [[moment for moment, _ in each] for each in begin],
        [[id for _, id in each] for each in begin],
        marks.arrivals,
    )
    taken = [row for row in came if row["id"] is not None]
    told = [row for row in came if row["id"] is None]
    waiting = {row["task"] for row in told}
    marks.note(still, terms.levels, taken, _view(told))
    rows += taken
    return waiting


def _view(told: Sequence[asyncpg.Record]) -> View:
    seen = next(row for row in told if row["task"] == "seen")
    return View(
        now=seen["run_at"],
        snapshot=seen["queue"],
        paused=frozenset(row["queue"] for row in told if row["task"] == "paused"),
        arrivals=any(row["task"] == "groups" for row in told),
    )


async def _admit(link: Link, marks: Marks) -> bool:
    """Let jobs into their groups; whether one of them may be claimed now."""
    rows = await link.fetch(sql.ADMIT, ADMITTED, marks.arrivals)
    return bool(rows[0]["opened"])


def _left(wanted: Mapping[str, int], rows: Sequence[asyncpg.Record]) -> dict[str, int]:
    came = Counter(row["queue"] for row in rows)
    return {queue: slots - came[queue] for queue, slots in wanted.items() if slots > came[queue]}


def levels(turn: int) -> Sequence[int]:
    """The priorities in the order in which the claim of this turn takes them: the highest first, almost always.

    Once in sixteen turns each of the lower ones is first. So the highest may keep all workers busy for ever, and still
    no job starves: a sixteenth of all claims is every other priority's own.
    """
    first = _TURNS.get(turn % AGEING)
    return PRIORITIES if first is None else (first, *(each for each in PRIORITIES if each != first))


async def settle(link: Link, settlements: Sequence[Settlement]) -> list[Claim]:
    """Write how attempts ended, all of them in one or two statements.

    Where there are jobs of groups among them, the next of each group is opened in the same transaction. A job that a
    person has asked to cancel while its attempt ended in a retry ends as cancelled.

    :return: the claims whose lease was lost: the row was not theirs any more, and nothing was written.
    """
    groups = [claim.group for claim, _ in settlements if claim.group is not None]
    if not groups:
        return await _settle(link, settlements)
    async with link.transaction():
        await link.fetch(sql.LOCK_GROUPS, groups)
        lost = await _settle(link, settlements)
        await link.fetch(sql.OPEN_GROUPS, groups)
    return lost


async def _settle(link: Link, settlements: Sequence[Settlement]) -> list[Claim]:
    finished = [(claim, outcome) for claim, outcome in settlements if isinstance(outcome, Finished)]
    postponed = [(claim, outcome) for claim, outcome in settlements if isinstance(outcome, Postponed)]
    if postponed:
        kept = await _postpone(link, postponed)
        ended_in = dict(postponed)
        finished += [(claim, Finished(State.CANCELLED, error=ended_in[claim].error)) for claim in kept]
    return await _finish(link, finished) if finished else []


async def settle_one_by_one(link: Link, settlements: Sequence[Settlement]) -> list[Claim]:
    """The same, for a batch that the database refused as a whole: only the offender is written without its texts."""
    refused: list[Claim] = []
    for claim, outcome in settlements:
        try:
            refused += await settle(link, [(claim, outcome)])
        except FAILURES as exc:
            if is_lost(exc):
                raise
            events.emit(events.ERROR, "settle_failed", job_id=claim.id, task=claim.task, error=_reason(exc))
            refused += await settle(link, [(claim, _without_texts(outcome, exc))])
    return refused


async def _finish(link: Link, finished: Sequence[tuple[Claim, Finished]]) -> list[Claim]:
    rows = await link.fetch(
        sql.FINISH,
        [claim.id for claim, _ in finished],
        [claim.fence for claim, _ in finished],
        [outcome.state.value for _, outcome in finished],
        [outcome.result for _, outcome in finished],
        [outcome.error and outcome.error.as_json() for _, outcome in finished],
        [claim.progress for claim, _ in finished],
        [claim.kept for claim, _ in finished],
    )
    return _missing(finished, rows)


async def _postpone(link: Link, postponed: Sequence[tuple[Claim, Postponed]]) -> list[Claim]:
    rows = await link.fetch(
        sql.POSTPONE,
        [claim.id for claim, _ in postponed],
        [claim.fence for claim, _ in postponed],
        [outcome.delay for _, outcome in postponed],
        [int(outcome.charged) for _, outcome in postponed],
        [outcome.error and outcome.error.as_json() for _, outcome in postponed],
        [claim.progress for claim, _ in postponed],
        [claim.kept for claim, _ in postponed],
    )
    return _missing(postponed, rows)


def _missing(asked: Sequence[tuple[Claim, Outcome]], rows: Sequence[asyncpg.Record]) -> list[Claim]:
    if len(rows) == len(asked):
        return []
    written = {row["n"] for row in rows}
    return [claim for n, (claim, _) in enumerate(asked, start=1) if n not in written]


def _without_texts(outcome: Outcome, exc: Exception) -> Outcome:
    error = Error(
        f"{ResultNotStored.__module__}.{ResultNotStored.__qualname__}", f"refused by Postgres: {_reason(exc)}"
    )
    match outcome:
        case Finished(state=state):
            return Finished(state, None, error)
        case Postponed(delay=delay, charged=charged):
            return Postponed(delay, error, charged)


def _reason(exc: Exception) -> str:
    # Not the message, which may repeat the value.
    return getattr(exc, "sqlstate", None) or type(exc).__name__


def _order(claim: Claim) -> tuple[int, object]:
    return -claim.priority, claim.run_at
