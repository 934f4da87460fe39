"""The checker itself: a good history passes, and each kind of bad one is told by its own rule."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import pytest

from tests.crash.history import Change, History, Job, Ledger, Row, Run, blamed_unjustly, merged, steps, violations

START = datetime(2026, 1, 1, tzinfo=UTC)
JOB = "job-1"


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def row(state: str, fence: int, **columns: Any) -> Row:
    lease = columns.pop("lease", None)
    return Row(state=state, fence=fence, lease_until=None if lease is None else at(lease), **columns)


PENDING = row("pending", 0)
RUNNING = row("running", 1, lease=2)
RENEWED = row("running", 1, lease=3)
RESCUED = row("pending", 1, lost=1)
AGAIN = row("running", 2, lost=1, lease=6)
LEAPT = row("running", 3, lost=1, lease=6)
SUCCEEDED = row("succeeded", 2, lost=1, attempt=1)


def story(*moves: tuple[Row | None, Row | None, str, float], job: str = JOB) -> list[Change]:
    """Changes one after the other, each in a transaction of its own."""
    numbers = count(1)
    return [
        Change(seq=number, tx=number, job=job, before=before, after=after, writer=writer, now=at(seconds))
        for number, (before, after, writer, seconds) in zip(numbers, moves, strict=False)
    ]


GOOD_MOVES: list[tuple[Row | None, Row | None, str, float]] = [
    (None, PENDING, "", 0),
    (PENDING, RUNNING, "a", 0),
    (RUNNING, RENEWED, "a", 1),
    (RENEWED, RESCUED, "b", 4),
    (RESCUED, AGAIN, "b", 4),
    (AGAIN, SUCCEEDED, "b", 5),
]
GOOD = History(
    changes=story(*GOOD_MOVES),
    runs=[
        Run(what="start", job=JOB, fence=1, worker="a"),
        Run(what="start", job=JOB, fence=2, worker="b"),
        Run(what="end", job=JOB, fence=2, worker="b"),
    ],
    jobs=[Job(id=JOB, row=SUCCEEDED, max_attempts=3, result={"fence": 2, "worker": "b"})],
    ledger=Ledger(committed={JOB}),
    orders=frozenset({JOB}),
)


def told(history: History) -> set[str]:
    """The rules that were broken, by their numbers."""
    return {text.split(maxsplit=1)[0] for text in violations(history)}


def with_moves(*moves: tuple[Row | None, Row | None, str, float]) -> History:
    """The good history with other moves, ending as they do."""
    end = moves[-1][1]
    assert end is not None
    return replace(GOOD, changes=story(*moves), jobs=[replace(GOOD.jobs[0], row=end)])


def test_a_good_history_passes() -> None:
    assert violations(GOOD) == []
    assert [step.move for step in steps(GOOD.changes)[JOB]] == [
        "enqueue", "claim", "renew", "rescue", "claim", "finish",
    ]  # fmt: skip


def test_the_way_from_table_to_table_is_one_change() -> None:
    out = Change(seq=1, tx=7, job=JOB, before=AGAIN, after=None, writer="b", now=at(5))
    into = Change(seq=2, tx=7, job=JOB, before=None, after=SUCCEEDED, writer="b", now=at(5))
    (whole,) = merged([into, out])
    assert (whole.before, whole.after) == (AGAIN, SUCCEEDED)
    assert merged([out, replace(into, tx=8)]) == [out, replace(into, tx=8)]
    assert merged([replace(into, seq=0), replace(out, seq=3)])[0].after == SUCCEEDED


def test_all_moves_have_names() -> None:
    cases = {
        (row("running", 1), row("pending", 1)): "postpone",
        (row("running", 1), row("failed", 1, attempt=1)): "finish",
        (row("running", 1), row("failed", 1, lost=3)): "rescue",
        (row("pending", 1), row("cancelled", 1)): "cancel",
        (row("pending", 1), row("succeeded", 1)): "illegal",
        (row("succeeded", 1), row("pending", 1)): "illegal",
    }
    for (before, after), move in cases.items():
        (step,) = steps(story((before, after, "a", 0)))[JOB]
        assert step.move == move


@pytest.mark.parametrize(
    ("rules", "moves"),
    [
        ({"I7"}, [*GOOD_MOVES[:5], (AGAIN, SUCCEEDED, "a", 5)]),
        ({"I7"}, [*GOOD_MOVES[:2], (RUNNING, RENEWED, "b", 1), *GOOD_MOVES[3:]]),
        ({"I6"}, [*GOOD_MOVES[:3], (RENEWED, RESCUED, "b", 2.9), *GOOD_MOVES[4:]]),
        ({"I6"}, [*GOOD_MOVES[:4], (RESCUED, LEAPT, "b", 4), (LEAPT, replace(SUCCEEDED, fence=3), "b", 5)]),
        ({"I6"}, [*GOOD_MOVES[:2], (RUNNING, replace(RENEWED, fence=2), "a", 1)]),
        ({"I9"}, [*GOOD_MOVES, (SUCCEEDED, RESCUED, "b", 6)]),
        ({"I9"}, [*GOOD_MOVES, (SUCCEEDED, replace(SUCCEEDED, state="failed"), "b", 6)]),
        ({"I10"}, GOOD_MOVES[1:]),
        ({"I10"}, [GOOD_MOVES[0], *GOOD_MOVES[2:]]),
        ({"I10"}, [GOOD_MOVES[0], (PENDING, row("succeeded", 0), "a", 1)]),
        ({"I8"}, [*GOOD_MOVES[:5], (AGAIN, replace(SUCCEEDED, attempt=0), "b", 5)]),
        ({"I8"}, [*GOOD_MOVES[:5], (AGAIN, replace(SUCCEEDED, attempt=2), "b", 5)]),
        ({"I8"}, [*GOOD_MOVES[:3], (RENEWED, row("failed", 1, lost=1), "b", 4)]),
        ({"I3"}, GOOD_MOVES[:5]),
    ],
    ids=[
        "settled by the worker that had lost its lease", "renewed by another worker", "a live lease revoked",
        "a fence left out", "claimed while it ran", "back from the end", "from one end to another",
        "out of nothing", "a move unseen", "the end without a claim", "an attempt not charged", "charged twice",
        "poison after one death", "never ended",
    ],
)  # fmt: skip
def test_bad_moves(rules: set[str], moves: list[tuple[Row | None, Row | None, str, float]]) -> None:
    assert rules <= told(with_moves(*moves))


def test_a_job_that_vanished() -> None:
    assert "I1" in told(replace(GOOD, changes=story(*GOOD_MOVES[:5], (AGAIN, None, "b", 5)), jobs=[]))
    assert told(replace(GOOD, changes=(), runs=(), jobs=(), orders=frozenset())) == {"I1"}


def test_a_business_row_without_its_job() -> None:
    assert told(replace(GOOD, orders=frozenset({JOB, "job-2"}))) == {"I1"}


def test_a_job_without_its_business_row() -> None:
    assert told(replace(GOOD, orders=frozenset())) == {"I2"}


def test_rolled_back_and_yet_there() -> None:
    ledger = Ledger(rolled_back={JOB})
    assert "I2" in told(replace(GOOD, ledger=ledger))
    assert told(replace(GOOD, ledger=ledger, changes=(), jobs=(), orders=frozenset())) == {"I2", "I6"}  # it ran
    assert told(replace(GOOD, ledger=ledger, changes=(), jobs=(), runs=())) == {"I1", "I2"}  # its business row


def test_nobody_knows_whether_it_was_committed() -> None:
    ledger = Ledger(unknown={JOB})
    assert violations(replace(GOOD, ledger=ledger)) == []
    assert violations(replace(GOOD, ledger=ledger, changes=(), runs=(), jobs=(), orders=frozenset())) == []
    assert told(replace(GOOD, ledger=ledger, orders=frozenset())) == {"I2"}


@pytest.mark.parametrize("result", [None, {"fence": 1, "worker": "b"}, {"fence": 2, "worker": "a"}])
def test_a_result_that_is_not_the_winners(result: Any) -> None:
    assert told(replace(GOOD, jobs=[replace(GOOD.jobs[0], result=result)])) == {"I4"}


def test_succeeded_without_having_run() -> None:
    assert told(replace(GOOD, runs=GOOD.runs[:2])) == {"I5"}


def test_started_twice_under_one_fence() -> None:
    assert told(replace(GOOD, runs=[*GOOD.runs, GOOD.runs[0]])) == {"I6"}


def test_run_without_a_claim() -> None:
    assert told(replace(GOOD, runs=[*GOOD.runs, Run(what="start", job=JOB, fence=2, worker="a")])) == {"I6"}


def test_failed_for_another_reason_than_dead_workers() -> None:
    failed = row("failed", 2, lost=1, attempt=1)
    history = with_moves(*GOOD_MOVES[:5], (AGAIN, failed, "b", 5))
    assert told(history) == {"I3"}


@pytest.mark.parametrize(("started", "unjust"), [(True, []), (False, [JOB])])
def test_poison_should_have_been_running(started: bool, unjust: list[str]) -> None:
    moves: list[tuple[Row | None, Row | None, str, float]] = [(None, PENDING, "", 0)]
    for lost in range(3):
        running = row("running", lost + 1, lost=lost, lease=lost * 10 + 2)
        moves.append((moves[-1][1], running, "a", lost * 10))
        state = "failed" if lost == 2 else "pending"
        moves.append((running, row(state, lost + 1, lost=lost + 1), "b", lost * 10 + 3))
    history = with_moves(*moves)
    runs = [Run(what="start", job=JOB, fence=fence, worker="a") for fence in (1, 2, 3)[: 3 if started else 2]]
    jobs = [replace(history.jobs[0], error="outbox.WorkerLost")]
    history = replace(history, runs=runs, jobs=jobs)
    assert told(history) == set()
    assert blamed_unjustly(history) == unjust


def test_more_attempts_than_allowed() -> None:
    assert told(replace(GOOD, jobs=[replace(GOOD.jobs[0], max_attempts=0)])) == {"I8"}
