"""What happened to the jobs, and whether it was right: pure functions over a recorded history.

The recorder (see ``database.py``) writes one ``Change`` for every row that a statement touches; handlers write one
``Run`` when they start and when they end; clients keep a ``Ledger`` of what they know of their transactions. From these
``violations`` tells every rule that was broken. It knows no database, so that hand-made bad histories can test it.

The numbers in the names of the rules are those of the invariants that queues of this kind are usually held to:

    I1 no loss · I2 no phantom · I3 liveness · I4 the result is the winner's · I5 at least once · I6 single live lease ·
    I7 stale writes rejected · I8 attempts · I9 terminal is final · I10 legal moves only
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import Any

TERMINAL = frozenset({"succeeded", "failed", "cancelled"})

MAX_LOST = 3
"""Dead workers after which a job may fail as poison. Said again here: the checker trusts nothing of the library."""

LOST = "outbox.WorkerLost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The columns of a job that the rules are about."""

    state: str
    fence: int
    attempt: int = 0
    lost: int = 0
    lease_until: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One row before and after one statement; None where there was none.

    :ivar writer: the worker that ran the statement, "" for anybody else.
    :ivar now: the start of the transaction, by which the worker's statements judge leases.
    """

    seq: int
    tx: int
    job: str
    before: Row | None
    after: Row | None
    writer: str
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A handler said something in a worker.

    :ivar what: "start", "end", or "broken off" if an exception, such as a cancellation, ended it.
    """

    what: str
    job: str
    fence: int
    worker: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as it stands when everything has come to rest."""

    id: str
    row: Row
    max_attempts: int
    result: Any = None
    error: str | None = None


@dataclass(slots=True)
class Ledger:
    """What the clients know of the jobs that they enqueued: each is in exactly one of the three."""

    committed: set[str] = field(default_factory=set)
    rolled_back: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """Everything that was recorded.

    :ivar orders: the jobs named by committed business rows, each of which was written together with its job.
    """

    changes: Sequence[Change]
    runs: Sequence[Run] = ()
    jobs: Sequence[Job] = ()
    ledger: Ledger = field(default_factory=Ledger)
    orders: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Step:
    """A change with the name of the move that it was, and the worker whose claim it ended or renewed."""

    move: str
    change: Change
    owner: str

    @property
    def job(self) -> str:
        """The job's id."""
        return self.change.job


def merged(changes: Iterable[Change]) -> list[Change]:
    """The changes in order, with a row's way from one table to the other as the one change that it is."""
    done: list[Change] = []
    open_halves: dict[tuple[int, str], int] = {}
    for change in sorted(changes, key=lambda each: each.seq):
        key = change.tx, change.job
        at = open_halves.pop(key, None)
        if at is not None and (done[at].before is None) != (change.before is None):
            half = done[at]
            done[at] = Change(
                seq=half.seq, tx=half.tx, job=half.job, before=half.before or change.before,
                after=half.after or change.after, writer=half.writer, now=half.now,
            )  # fmt: skip
            continue
        if change.before is None or change.after is None:
            open_halves[key] = len(done)
        done.append(change)
    return done


def steps(changes: Iterable[Change]) -> dict[str, list[Step]]:
    """The moves of each job, in order."""
    told: dict[str, list[Step]] = defaultdict(list)
    owners: dict[str, str] = {}
    for change in merged(changes):
        move = _move(change)
        if move == "claim":
            owners[change.job] = change.writer
        told[change.job].append(Step(move, change, owners.get(change.job, "")))
    return dict(told)


def _move(change: Change) -> str:
    before, after = change.before, change.after
    if before is None or after is None:
        return "enqueue" if before is None and after is not None and after.state == "pending" else "illegal"
    lost = after.lost - before.lost
    match before.state, after.state:
        case "pending", "running":
            return "claim"
        case "running", "running":
            return "renew"
        case "running", "pending":
            return "rescue" if lost else "postpone"
        case "running", _ if after.state in TERMINAL:
            return "rescue" if lost else "finish"
        case "pending", "cancelled":
            return "cancel"
    return "illegal"


def violations(history: History) -> list[str]:
    """Every rule that was broken, in words; an empty list if all was well."""
    told = steps(history.changes)
    found: list[str] = []
    for job, moves in told.items():
        for rule in STEP_RULES:
            found += [f"{text} [job {job}]" for text in rule(moves)]
    for whole in RULES:
        found += whole(history, told)
    return found


def must_be_right(history: History) -> None:
    """Fail the test if a rule was broken, and say which."""
    found = violations(history)
    assert not found, "\n".join([f"{len(found)} violations:", *found[:20]])


def _legal(moves: list[Step]) -> Iterator[str]:
    if moves[0].move != "enqueue":
        yield f"I10 the first thing known of the job is: {moves[0].move}"
    for step in moves:
        before, after = step.change.before, step.change.after
        if before is not None and after is None:
            yield f"I1 the {before.state} job was deleted"
        elif before is not None and before.state in TERMINAL:
            yield f"I9 left the terminal state {before.state}"
        elif step.move == "illegal":
            yield f"I10 illegal move {before and before.state} → {after and after.state}"


def _unbroken(moves: list[Step]) -> Iterator[str]:
    for earlier, later in pairwise(moves):
        if earlier.change.after != later.change.before:
            yield f"I10 {later.move} found {later.change.before}, but {earlier.move} had left {earlier.change.after}"


def _fences(moves: list[Step]) -> Iterator[str]:
    for step in moves:
        before, after = step.change.before, step.change.after
        grown = (after.fence if after else 0) - (before.fence if before else 0)
        if after is not None and grown != (step.move == "claim"):
            yield f"I6 {step.move} changed the fence by {grown}"


def _leases(moves: list[Step]) -> Iterator[str]:
    for step in moves:
        before = step.change.before
        if step.move == "rescue" and before is not None and before.lease_until is not None:
            if before.lease_until >= step.change.now:
                yield f"I6 a live lease of {step.owner} was revoked by {step.change.writer}"
            after = step.change.after
            if after is not None and after.state == "failed" and after.lost < MAX_LOST:
                yield f"I8 failed as poison after {after.lost} lost workers"


def _owners(moves: list[Step]) -> Iterator[str]:
    for step in moves:
        if step.move in ("renew", "postpone", "finish") and step.change.writer != step.owner:
            yield f"I7 {step.move} by {step.change.writer or 'nobody'}, but the claim was of {step.owner}"


def _attempts(moves: list[Step]) -> Iterator[str]:
    charges = {"finish": {1}, "postpone": {0, 1}}
    for step in moves:
        before, after = step.change.before, step.change.after
        if before is None or after is None:
            continue
        if after.attempt - before.attempt not in charges.get(step.move, {0}):
            yield f"I8 {step.move} charged {after.attempt - before.attempt} attempts"
        if after.lost - before.lost not in ({1} if step.move == "rescue" else {0}):
            yield f"I8 {step.move} counted {after.lost - before.lost} lost workers"


STEP_RULES: tuple[Callable[[list[Step]], Iterator[str]], ...] = (
    _legal, _unbroken, _fences, _leases, _owners, _attempts,
)  # fmt: skip


def _nothing_lost(history: History, told: Mapping[str, list[Step]]) -> Iterator[str]:
    there = {job.id for job in history.jobs}
    for job in sorted(history.ledger.committed - there):
        yield f"I1 committed, but not there [job {job}]"
    for job in sorted(told.keys() - there):
        yield f"I1 was there, but is no more [job {job}]"


def _nothing_imagined(history: History, told: Mapping[str, list[Step]]) -> Iterator[str]:
    ran = {run.job for run in history.runs}
    there = {job.id for job in history.jobs}
    for job in sorted(history.ledger.rolled_back & (there | told.keys())):
        yield f"I2 rolled back, but there [job {job}]"
    for job in sorted(history.ledger.rolled_back & ran):
        yield f"I2 rolled back, but ran [job {job}]"
    for job in sorted(history.ledger.rolled_back & history.orders):
        yield f"I2 rolled back, but its business row is there [job {job}]"
    for job in sorted(ran - told.keys()):
        yield f"I2 ran, but was never enqueued [job {job}]"


def _together(history: History, _told: Mapping[str, list[Step]]) -> Iterator[str]:
    ledger = history.ledger
    ours = ledger.committed | ledger.rolled_back | ledger.unknown
    there = {job.id for job in history.jobs} & ours
    for job in sorted(there - history.orders):
        yield f"I2 a job without its business row [job {job}]"
    for job in sorted(history.orders - there):
        yield f"I1 a business row without its job [job {job}]"


def _all_ended(history: History, told: Mapping[str, list[Step]]) -> Iterator[str]:
    for job in history.jobs:
        if job.row.state not in TERMINAL:
            yield f"I3 never ended: {job.row} [job {job.id}]"
        moves = told.get(job.id)
        if not moves or moves[-1].change.after != job.row:
            yield f"I10 stands as {job.row}, which is not what was recorded last [job {job.id}]"
        if job.row.attempt > job.max_attempts:
            yield f"I8 {job.row.attempt} attempts of {job.max_attempts} [job {job.id}]"
        if job.row.state == "failed" and (job.error != LOST or job.row.lost < MAX_LOST):
            yield f"I3 failed with {job.error} after {job.row.lost} lost workers [job {job.id}]"


def _winners(history: History, told: Mapping[str, list[Step]]) -> Iterator[str]:
    """The result that stands is that of the last claim, and its handler has really come to the end."""
    ended = {(run.job, run.fence, run.worker) for run in history.runs if run.what == "end"}
    for job in history.jobs:
        if job.row.state != "succeeded":
            continue
        said = job.result if isinstance(job.result, dict) else {}
        owner = told[job.id][-1].owner if job.id in told else ""
        if (said.get("fence"), said.get("worker")) != (job.row.fence, owner):
            yield f"I4 the result says {job.result}, the claim was {job.row.fence} of {owner} [job {job.id}]"
        if (job.id, job.row.fence, owner) not in ended:
            yield f"I5 succeeded, but its handler never ended under fence {job.row.fence} [job {job.id}]"


def _starts(history: History, told: Mapping[str, list[Step]]) -> Iterator[str]:
    claimed = {
        (step.job, step.change.after.fence): step.change.writer
        for moves in told.values()
        for step in moves
        if step.move == "claim" and step.change.after is not None
    }
    starts = Counter((run.job, run.fence) for run in history.runs if run.what == "start")
    for (job, fence), count in starts.items():
        if count > 1:
            yield f"I6 started {count} times under fence {fence} [job {job}]"
    for run in history.runs:
        if claimed.get((run.job, run.fence)) != run.worker:
            yield f"I6 {run.worker} ran fence {run.fence} without having claimed it [job {run.job}]"


RULES: tuple[Callable[[History, Mapping[str, list[Step]]], Iterable[str]], ...] = (
    _nothing_lost, _nothing_imagined, _together, _all_ended, _winners, _starts,
)  # fmt: skip


def count(history: History, move: str) -> int:
    """How many moves of this name there were."""
    return sum(step.move == move for moves in steps(history.changes).values() for step in moves)


def blamed_unjustly(history: History) -> list[str]:
    """Jobs that failed as poison although their handler had not even started when the last worker died.

    No rule, for a worker may die in the moment between the claim of a suspect and its start; but it must be rare.
    """
    started = {(run.job, run.fence) for run in history.runs if run.what == "start"}
    return [
        job.id
        for job in history.jobs
        if job.row.state == "failed" and job.error == LOST and (job.id, job.row.fence) not in started
    ]
