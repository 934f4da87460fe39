"""Where a claim begins to look: behind what the last one has left empty, and never behind what may still come."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from outbox import marks
from outbox.marks import FIRST, MARGIN, PATIENCE, Marks, Position, View

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
LEVELS = (3, 2, 1, 0)
HIGH, USUAL = 3, 1


def at(seconds: float, id: int = 0) -> Position:
    return NOON + timedelta(seconds=seconds), UUID(int=id)


def job(seconds: float, id: int = 1, *, priority: int = USUAL, suspect: bool = False) -> dict[str, Any]:
    run_at, uuid = at(seconds, id)
    return {"id": uuid, "queue": "mail", "priority": priority, "run_at": run_at, "suspect": suspect}


def claim(
    mine: Marks,
    now: float,
    rows: Sequence[dict[str, Any]] = (),
    *,
    slots: int = 10,
    running: Sequence[int] = (),
    paused: bool = False,
    arrivals: bool = False,
    suspect: bool = True,
) -> None:
    mine.begin(["mail"], LEVELS, suspect=suspect)
    snapshot = f"1:999:{','.join(map(str, running))}"
    view = View(at(now)[0], snapshot, frozenset(["mail"] if paused else []), arrivals=arrivals)
    mine.note({"mail": slots}, LEVELS, rows, view)


def begins(mine: Marks, priority: int = USUAL) -> Position:
    return mine.begin(["mail"], [priority])[0][0]


def test_the_first_claim_begins_at_the_beginning() -> None:
    assert begins(Marks()) == FIRST


def test_one_that_left_nothing_moves_the_mark_to_its_own_moment() -> None:
    mine = Marks()
    claim(mine, 0, [job(-5)])
    assert begins(mine) == begins(mine, HIGH) == at(-MARGIN.total_seconds())


def test_one_that_was_filled_moves_it_to_the_last_job_that_it_took() -> None:
    mine = Marks()
    claim(mine, 0, [job(-9, 7), job(-8, 9), job(-8, 3)], slots=3)
    assert begins(mine) == at(-8, 9)


def test_of_the_priorities_only_the_last_one_it_came_to_may_hold_more() -> None:
    mine = Marks()
    claim(mine, 0, [job(-9, priority=HIGH), job(-8, priority=USUAL)], slots=2)
    assert begins(mine, 3) == begins(mine, 2) == at(-MARGIN.total_seconds())
    assert begins(mine, USUAL) == at(-8, 1)
    assert begins(mine, 0) == FIRST, "it was not looked at"


def test_a_paused_queue_keeps_its_mark() -> None:
    mine = Marks()
    claim(mine, 0, paused=True)
    assert begins(mine) == FIRST


def test_the_mark_does_not_pass_the_beginning_of_a_transaction_that_runs() -> None:
    mine = Marks()
    claim(mine, 0)
    claim(mine, 0.5, running=[42])
    claim(mine, 0.9, running=[42])
    assert begins(mine) == at(-MARGIN.total_seconds()), "it may have begun right after the claim before"
    claim(mine, 1.0)
    assert begins(mine) == at(1.0 - MARGIN.total_seconds())


def test_it_passes_one_that_runs_for_long_and_comes_back_when_that_ends() -> None:
    mine = Marks()
    claim(mine, 0)
    claim(mine, 0.5, running=[42])
    late = 0.5 + PATIENCE.total_seconds()
    claim(mine, late, running=[42])
    assert (begins(mine), mine.again) == (at(late - MARGIN.total_seconds()), False)
    claim(mine, late + 10)
    assert (begins(mine), mine.again) == (at(-MARGIN.total_seconds()), True)
    claim(mine, late + 11)
    assert (begins(mine), mine.again) == (at(late + 11 - MARGIN.total_seconds()), False)


def test_what_ran_before_the_first_claim_may_have_written_anything() -> None:
    mine = Marks()
    claim(mine, 0, running=[7])
    assert begins(mine) == at(-MARGIN.total_seconds())
    claim(mine, 1)
    assert mine.again
    assert begins(mine) == FIRST


def test_a_clock_that_was_set_back_begins_anew() -> None:
    mine = Marks()
    claim(mine, 100)
    claim(mine, 50)
    assert begins(mine) == at(50 - MARGIN.total_seconds())


def test_where_suspects_were_passed_over_the_mark_stays() -> None:
    mine = Marks()
    claim(mine, 0)
    claim(mine, 1, [job(0.5, suspect=True)])
    assert begins(mine) == at(0), "others may lie beside the one that was taken"


def test_once_suspects_may_be_taken_again_those_passed_over_are_found() -> None:
    mine = Marks()
    claim(mine, 0, suspect=False)
    claim(mine, 1, suspect=False)
    assert mine.begin(["mail"], LEVELS, suspect=False)[0][0] != FIRST
    assert mine.begin(["mail"], LEVELS, suspect=True)[0][0] == FIRST


def test_those_outside_of_their_groups_have_a_mark_of_their_own() -> None:
    mine = Marks()
    claim(mine, 0, arrivals=True)
    assert mine.arrivals == FIRST[0]
    claim(mine, 1)
    assert mine.arrivals == at(1 - MARGIN.total_seconds())[0]
    claim(mine, 2, arrivals=True)
    assert mine.arrivals == at(1)[0]


def test_now_and_then_a_claim_begins_at_the_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 1000.0
    monkeypatch.setattr("outbox.marks.time.monotonic", lambda: clock)
    mine = Marks()
    claim(mine, 0)
    clock += marks.SWEEP
    assert begins(mine) == FIRST
    assert mine.arrivals == FIRST[0]
    clock += 1.0  # so long did it take
    claim(mine, 1)
    assert begins(mine) != FIRST
    clock += 1.0 / marks.SWEEPS_SHARE - 0.1
    assert begins(mine) != FIRST, "it takes no more than its share of the time"
    clock += 0.2
    assert begins(mine) == FIRST


def test_an_arrival_that_only_a_sweep_has_found_is_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 1000.0
    monkeypatch.setattr("outbox.marks.time.monotonic", lambda: clock)
    mine = Marks()
    claim(mine, 0)
    clock += marks.SWEEP
    claim(mine, 1, arrivals=True)
    assert mine.arrivals == FIRST[0]


@pytest.mark.parametrize(("snapshot", "meant"), [("5:5:", set[int]()), ("5:9:5,7", {5, 7})])
def test_a_snapshot_says_which_transactions_run(snapshot: str, meant: set[int]) -> None:
    assert marks.running(snapshot) == meant
