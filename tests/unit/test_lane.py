"""A lane claims ahead only what runs at once, never exceeds its slots, and hands back what is stuck."""

from hypothesis import given
from hypothesis import strategies as st

from outbox.context import Claim
from outbox.lane import AHEAD, STALLED, Lane
from tests import factories


def claims(count: int) -> list[Claim]:
    return [factories.held(factories.new_id()) for _ in range(count)]


def start_all(lane: Lane[Claim], now: float) -> list[Claim]:
    started = []
    while (claim := lane.next(now)) is not None:
        started.append(claim)
    return started


def drive(lane: Lane[Claim], *, seconds: float, per_job: float, at: float = 100.0) -> tuple[float, int]:
    """Run jobs of a steady length for a while; the time then, and the most claims that ever waited."""
    now, most, ends = at, 0, list[float]()
    while now < at + seconds:
        while ends and ends[0] <= now:
            ends.pop(0)
            lane.give_back(per_job)
        lane.waiting.extend(claims(lane.wants(now)))
        ends += [now + per_job for _ in start_all(lane, now)]
        most = max(most, len(lane.waiting))
        now += min(per_job, 0.01)
    return now, most


def test_a_new_lane_asks_for_its_free_slots_only() -> None:
    lane: Lane[Claim] = Lane("default", 10, prefetch=1000)
    assert lane.wants(100.0) == 10
    lane.running = 7
    assert lane.wants(100.001) == 3
    lane.running = 10
    assert lane.wants(100.002) == 0


def test_claims_start_in_order_and_only_in_free_slots() -> None:
    lane, given = Lane[Claim]("default", 3, prefetch=1000), claims(5)
    lane.waiting.extend(given)
    assert start_all(lane, 1.0) == given[:3]
    assert lane.running == 3
    lane.give_back(0.1)
    assert start_all(lane, 1.0) == given[3:4]


def test_slow_jobs_are_never_hoarded() -> None:
    lane: Lane[Claim] = Lane("default", 4, prefetch=1000)
    _, most = drive(lane, seconds=30, per_job=1.0)
    assert most <= 4 * AHEAD + 1
    assert lane.running <= 4


def test_fast_jobs_are_claimed_ahead_at_the_pace_of_late() -> None:
    lane: Lane[Claim] = Lane("default", 10, prefetch=1000)
    _, most = drive(lane, seconds=2, per_job=0.001)
    pace = 10 / 0.001
    assert 10 < most <= min(1000, pace * AHEAD) + 10


def test_no_more_is_held_ready_than_was_allowed() -> None:
    lane: Lane[Claim] = Lane("default", 10, prefetch=20)
    _, most = drive(lane, seconds=2, per_job=0.001)
    assert most <= 20
    lane = Lane("default", 10, prefetch=0)
    _, most = drive(lane, seconds=2, per_job=0.001)
    assert most == 0


def test_a_lane_forgets_its_pace_when_jobs_become_slow() -> None:
    lane: Lane[Claim] = Lane("default", 10, prefetch=1000)
    now, most = drive(lane, seconds=2, per_job=0.001)
    assert most > 10
    lane.clear()
    lane.running = 10
    lane.wants(now + 10)
    assert lane.wants(now + 20) == 0
    lane.running = 9
    assert lane.wants(now + 30) == 1


def test_claims_stuck_behind_slow_jobs_are_handed_back() -> None:
    lane, given = Lane[Claim]("default", 2, prefetch=1000), claims(6)
    lane.waiting.extend(given)
    start_all(lane, 50.0)
    assert lane.stalled(50.0 + STALLED * 0.9) == []
    assert lane.stalled(50.0 + STALLED) == given[2:]
    assert not lane.waiting
    assert lane.wants(52.0) == 0


def test_an_empty_lane_is_never_stalled() -> None:
    assert Lane[Claim]("default", 2, prefetch=10).stalled(1e9) == []


def test_clearing_hands_over_everything_that_waits() -> None:
    lane, given = Lane[Claim]("default", 2, prefetch=10), claims(5)
    lane.waiting.extend(given)
    start_all(lane, 1.0)
    assert lane.clear() == given[2:]
    assert lane.clear() == []


def test_a_lane_has_room_when_half_of_what_was_held_ready_is_gone() -> None:
    lane: Lane[Claim] = Lane("default", 1, prefetch=1000)
    assert lane.has_room()
    lane.running = 1
    assert not lane.has_room()


@given(
    st.integers(1, 20),
    st.integers(0, 50),
    st.lists(st.tuples(st.sampled_from(["claim", "end", "stall", "clear"]), st.floats(0, 3)), max_size=200),
)
def test_whatever_happens_the_limits_hold(slots: int, prefetch: int, steps: list[tuple[str, float]]) -> None:
    lane, now = Lane[Claim]("default", slots, prefetch), 1.0
    for step, pause in steps:
        now += pause
        if step == "claim":
            wanted = lane.wants(now)
            assert 0 <= wanted <= slots + prefetch
            lane.waiting.extend(claims(wanted))
            start_all(lane, now)
        elif step == "end" and lane.running:
            lane.give_back(0.1)
            start_all(lane, now)
        elif step == "stall":
            lane.stalled(now)
        else:
            lane.clear()
        assert 0 <= lane.running <= slots
        assert len(lane.waiting) <= slots + prefetch
