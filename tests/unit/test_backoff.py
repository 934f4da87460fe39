"""Delays: capped before they are randomised, defined for every attempt number, refused at declaration if senseless."""

import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox import Retry
from outbox.backoff import MAX_DELAY, RetryAfter, seconds
from outbox.errors import DeclarationError

BOOM = ValueError("boom")


def lowest() -> float:
    return 0.0


def highest() -> float:
    return math.nextafter(1.0, 0.0)


def delay(retry: Retry, attempt: int, draw: Callable[[], float] = lowest, exc: BaseException = BOOM) -> float:
    found = retry.next_delay(attempt, exc, draw=draw)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("attempt", "expected"),
    [(-1, 2), (0, 2), (1, 2), (2, 4), (3, 8), (10, 1024), (11, 2048), (12, 3600), (13, 3600), (63, 3600), (64, 3600),
     (310, 3600), (1023, 3600), (1024, 3600), (1025, 3600), (10_000, 3600), (2**31 - 1, 3600), (2**63, 3600)],
)  # fmt: skip
def test_delays_double_up_to_the_cap(attempt: int, expected: float) -> None:
    assert delay(Retry(), attempt) == expected


def test_no_attempt_up_to_ten_thousand_overflows_or_goes_back() -> None:
    for retry in (Retry(), Retry(base=0), Retry(factor=1000, cap=MAX_DELAY), Retry(base=MAX_DELAY, factor=1.0001)):
        delays = [delay(retry, attempt) for attempt in range(10_001)]
        assert delays == sorted(delays)
        assert delays[-1] <= retry.cap


def test_the_cap_comes_before_the_jitter() -> None:
    retry = Retry(base=100, cap=100, jitter=0.5)
    assert delay(retry, 50, lowest) == 100
    assert delay(retry, 50, lambda: 0.5) == 75
    assert delay(retry, 50, highest) == pytest.approx(50)


@given(
    st.floats(0, MAX_DELAY),
    st.floats(1, 1000),
    st.floats(0, MAX_DELAY),
    st.floats(0, 1),
    st.integers(-5, 2**63),
    st.floats(0, 1, exclude_max=True),
)
def test_every_delay_lies_between_nothing_and_the_cap(
    base: float, factor: float, cap: float, jitter: float, attempt: int, drawn: float
) -> None:
    found = delay(Retry(base=base, factor=factor, cap=cap, jitter=jitter), attempt, lambda: drawn)
    assert 0 <= found <= cap
    assert found >= min(cap, base) * (1 - jitter) - 1e-9


def test_jitter_spreads_jobs_that_failed_together() -> None:
    retry = Retry(base=100, cap=100)
    assert len({retry.next_delay(1, BOOM) for _ in range(50)}) > 40
    assert len({Retry(base=100, cap=100, jitter=0).next_delay(1, BOOM) for _ in range(50)}) == 1


def test_fixed_delays_are_all_the_same() -> None:
    retry = Retry.fixed(7, max_attempts=3)
    assert retry.max_attempts == 3
    assert {delay(retry, attempt, highest) for attempt in (1, 2, 10, 10_000)} == {7}


class Parent(Exception):
    pass


class Child(Parent):
    pass


class Grandchild(Child):
    pass


def test_the_nearest_class_of_the_exception_decides() -> None:
    retry = Retry(base=1, jitter=0, per_exception={Parent: Retry.fixed(10), Child: Retry.fixed(20)})
    assert delay(retry, 1, exc=ValueError()) == 1
    assert delay(retry, 1, exc=Parent()) == 10
    assert delay(retry, 1, exc=Child()) == 20
    assert delay(retry, 1, exc=Grandchild()) == 20


def test_a_policy_of_its_own_wins_over_giving_up() -> None:
    retry = Retry(give_up_on=(Parent,), per_exception={Child: Retry.fixed(20)})
    assert retry.next_delay(1, Parent()) is None
    assert retry.next_delay(1, Child()) == 20


def test_giving_up_wins_over_the_list_of_what_is_retried() -> None:
    retry = Retry(on=(Parent,), give_up_on=(Child,))
    assert retry.next_delay(1, Parent()) is not None
    assert retry.next_delay(1, Child()) is None
    assert retry.next_delay(1, Grandchild()) is None
    assert retry.next_delay(1, ValueError()) is None


@pytest.mark.parametrize("exception", [SystemExit(), KeyboardInterrupt(), GeneratorExit()])
def test_by_default_only_ordinary_exceptions_are_retried(exception: BaseException) -> None:
    assert Retry().next_delay(1, exception) is None
    assert Retry(on=(BaseException,)).next_delay(1, exception) is not None


@pytest.mark.parametrize(
    ("asked", "expected"),
    [(5, 5.0), (timedelta(minutes=2), 120.0), (0, 0.0), (1e300, MAX_DELAY), (math.inf, MAX_DELAY), (None, None)],
)
def test_a_custom_delay_is_taken_within_the_limits(asked: Any, expected: float | None) -> None:
    seen = []

    def custom(attempt: int, exception: BaseException) -> Any:
        seen.append((attempt, exception))
        return asked

    assert Retry(delay=custom).next_delay(4, BOOM, draw=highest) == expected
    assert seen == [(4, BOOM)]


@pytest.mark.parametrize("asked", [-1, math.nan, timedelta(seconds=-1)])
def test_a_custom_delay_that_is_none_of_the_kind_is_an_error(asked: Any) -> None:
    with pytest.raises(ValueError, match="at least 0"):
        Retry(delay=lambda _attempt, _exception: asked).next_delay(1, BOOM)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_attempts", 0),
        ("max_attempts", -1),
        ("max_attempts", 32_768),
        ("base", -0.1),
        ("base", math.nan),
        ("base", math.inf),
        ("factor", 0.99),
        ("factor", 1001),
        ("factor", math.nan),
        ("cap", -1),
        ("cap", MAX_DELAY + 1),
        ("cap", math.nan),
        ("jitter", -0.1),
        ("jitter", 1.1),
        ("jitter", math.nan),
    ],
)
def test_a_senseless_policy_is_refused_where_it_is_declared(field: str, value: Any) -> None:
    with pytest.raises(DeclarationError, match=rf"Retry\({field}="):
        Retry(**{field: value})


def test_the_limits_themselves_are_allowed() -> None:
    Retry(max_attempts=1, base=0, factor=1, cap=0, jitter=0)
    Retry(max_attempts=32_767, base=MAX_DELAY, factor=1000, cap=MAX_DELAY, jitter=1)


def test_retry_after_names_its_delay() -> None:
    asked = Retry.after(timedelta(minutes=1), "429 Too Many Requests")
    assert isinstance(asked, RetryAfter)
    assert (asked.delay, str(asked)) == (60, "429 Too Many Requests")
    assert str(Retry.after(2.5)) == "retry after 2.5 s"
    with pytest.raises(ValueError, match="at least 0"):
        Retry.after(-1)


def test_seconds_are_bounded() -> None:
    assert seconds(timedelta.max) == MAX_DELAY
    assert seconds(0) == 0
    for senseless in (-1, math.nan, -math.inf, timedelta(microseconds=-1)):
        with pytest.raises(ValueError, match="at least 0"):
            seconds(senseless)
