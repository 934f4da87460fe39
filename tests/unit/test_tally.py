"""Attempts are counted by how they ended and how long they took."""

import pytest

from outbox.job import State
from outbox.meter import OUTCOMES
from outbox.outcome import RELEASED, Error, Finished, Outcome, Postponed
from outbox.statistic import add, quantile
from outbox.tally import BOUNDS, BUCKETS, Tally

ERROR = Error("ValueError", "no")


@pytest.mark.parametrize(
    ("outcome", "name"),
    [
        (Finished(State.SUCCEEDED), "succeeded"),
        (Finished(State.FAILED, error=ERROR), "failed"),
        (Finished(State.CANCELLED), "cancelled"),
        (Postponed(10, ERROR, charged=True), "retried"),
        (Postponed(10, ERROR), "retried"),
        (Postponed(10), "snoozed"),
        (RELEASED, None),
    ],
)
def test_each_outcome_has_its_name(outcome: Outcome, name: str | None) -> None:
    tally = Tally()
    tally.note("q", "t", outcome, 0, 0)
    assert list(tally.take()) == ([("q", "t", name)] if name else [])
    assert name is None or name in OUTCOMES


def test_counting_begins_anew_when_it_is_taken() -> None:
    tally = Tally()
    for n in range(3):
        tally.note("q", "t", Finished(State.SUCCEEDED), 0.0, n)
    [counts] = tally.take().values()
    assert (counts.count, sum(counts.waits), sum(counts.runs)) == (3, 3, 3)
    assert tally.take() == {}


@pytest.mark.parametrize("seconds", [-1.0, 0.0, 0.0005, 0.001, 0.0011, 0.5, 1.0, 60.0, 3600.0, 1e6])
def test_a_quantile_is_at_most_a_fifth_beside_the_truth_on_either_side(seconds: float) -> None:
    tally = Tally()
    tally.note("q", "t", Finished(State.SUCCEEDED), seconds, seconds)
    [counts] = tally.take().values()
    assert len(counts.runs) == BUCKETS
    found = quantile(counts.runs, 0.5)
    assert found is not None
    if BOUNDS[0] <= seconds <= BOUNDS[-1]:
        assert seconds <= found <= seconds * 2**0.5 * 1.000001
    else:
        assert found in (BOUNDS[0], BOUNDS[-1])


def test_quantiles_of_many() -> None:
    tally = Tally()
    for n in range(1, 1001):
        tally.note("q", "t", Finished(State.SUCCEEDED), 0, n / 1000)
    [counts] = tally.take().values()
    for share in (0.1, 0.5, 0.9, 0.99):
        found = quantile(counts.runs, share)
        assert found is not None
        assert share <= found <= share * 1.4143
    assert quantile([], 0.5) is None
    assert quantile([0, 0], 0.5) is None


def test_counts_of_different_lengths_are_added() -> None:
    assert add([[1, 2], [10], [], [0, 0, 5]]) == [11, 2, 5]
    assert add([]) == []
