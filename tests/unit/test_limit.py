"""Who gets how many of what a limit lets start, and which limits make no sense."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox import Limit, Outbox
from outbox.errors import DeclarationError
from outbox.turns import Room, Turn, share

turns_strategy = st.lists(
    st.builds(
        Turn, st.sampled_from("pq"), st.sampled_from("ab"), st.sampled_from(["", "x", "y", "z"]), st.integers(0, 9)
    ),
    max_size=10,
    unique_by=lambda turn: (turn.queue, turn.task, turn.key),
)
slots_strategy = st.fixed_dictionaries({"p": st.integers(0, 12), "q": st.integers(0, 12)})


def test_each_turn_gets_one_before_any_gets_two() -> None:
    turns = [Turn("q", "t", key, 100) for key in "abc"]
    assert list(share(turns, {"q": 7}, {}).values()) == [3, 2, 2]


def test_what_one_turn_does_not_need_goes_to_the_others() -> None:
    turns = [Turn("q", "t", "a", 1), Turn("q", "t", "b", 100)]
    assert list(share(turns, {"q": 10}, {}).values()) == [1, 9]


def test_a_limit_of_the_task_holds_for_all_of_its_turns_and_for_no_other_task() -> None:
    turns = [Turn("q", "t", "a", 10), Turn("q", "t", "b", 10), Turn("q", "other", "", 10)]
    assert list(share(turns, {"q": 20}, {("task", "t", False, ""): 3}).values()) == [2, 1, 10]


def test_the_narrowest_of_several_limits_decides() -> None:
    rooms: dict[Room, int] = {("task", "t", False, ""): 5, ("task", "t", True, "a"): 1, ("queue", "q", False, ""): 3}
    turns = [Turn("q", "t", "a", 10), Turn("q", "t", "b", 10)]
    assert list(share(turns, {"q": 20}, rooms).values()) == [1, 2]


@given(turns_strategy, slots_strategy, st.data())
def test_nothing_is_exceeded_and_nothing_is_left(turns: list[Turn], slots: dict[str, int], data: st.DataObject) -> None:
    every = sorted({room for turn in turns for room in turn.rooms()})
    rooms = {room: data.draw(st.integers(0, 6)) for room in every if data.draw(st.booleans())}
    shares = share(turns, slots, rooms)
    for queue, free in slots.items():
        assert sum(count for turn, count in shares.items() if turn.queue == queue) <= free
    for room, left in rooms.items():
        assert sum(count for turn, count in shares.items() if room in turn.rooms()) <= left
    for turn in turns:
        got = shares.get(turn, 0)
        assert got <= turn.due
        if got < turn.due:
            full = sum(count for each, count in shares.items() if each.queue == turn.queue) == slots[turn.queue]
            at_limit = any(
                sum(count for each, count in shares.items() if room in each.rooms()) == left
                for room, left in rooms.items()
                if room in turn.rooms()
            )
            assert full or at_limit, f"{turn} could have had more"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "concurrency"),
        ({"concurrency": -1}, "concurrency"),
        ({"rate": 0}, "rate"),
        ({"rate": float("nan")}, "rate"),
        ({"rate": 1, "per": 0}, "per"),
        ({"rate": 1, "per": -1}, "delay"),
        ({"rate": 1, "burst": 0}, "burst"),
        ({"concurrency": 1, "burst": 2}, "burst"),
    ],
)
def test_limits_that_make_no_sense_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Limit(**options)


def test_a_rate_is_reckoned_in_seconds() -> None:
    assert Limit(rate=90, per=timedelta(minutes=1)).rate_per_second == 1.5
    assert Limit(concurrency=1).rate_per_second is None


def test_what_is_declared() -> None:
    outbox = Outbox()

    @outbox.task(queue="mail", limit=Limit(concurrency=3), limit_per_key=Limit(rate=1))
    async def send() -> None: ...

    outbox.limit_queue("reports", Limit(concurrency=1))
    assert [(rule.scope, rule.name, rule.per_key) for rule in outbox.limits] == [
        ("task", "send", False),
        ("task", "send", True),
        ("queue", "reports", False),
    ]
    assert outbox.spoken_for == {("task", "send"), ("queue", "mail"), ("queue", "reports")}


def test_a_queue_is_declared_once() -> None:
    outbox = Outbox()
    outbox.limit_queue("reports", Limit(concurrency=1))
    with pytest.raises(DeclarationError, match="twice"):
        outbox.limit_queue("reports", per_key=Limit(concurrency=1))
    with pytest.raises(DeclarationError, match="queue"):
        outbox.limit_queue("")
