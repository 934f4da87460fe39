"""How often somebody may ask: never more than was said, never less, and nobody's address fills the memory."""

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.fastapi import rate
from outbox.fastapi.rate import Rate, Throttle, network


class Clock:
    """Goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic_ns(self) -> int:
        return round(self.now * 1e9)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(rate, "time", clock)
    return clock


def test_a_burst_at_once_then_one_by_one(clock: Clock) -> None:
    throttle = Throttle(Rate(10, per=60, burst=3))
    assert [throttle.take("a") for _ in range(3)] == [0, 0, 0]
    assert throttle.take("a") == pytest.approx(6)
    clock.now += 4
    assert throttle.take("a") == pytest.approx(2)
    clock.now += 2.001
    assert throttle.take("a") == 0
    assert throttle.take("a") > 5


def test_who_is_refused_does_not_pay_for_it(clock: Clock) -> None:
    throttle = Throttle(Rate(1, burst=1))
    throttle.take("a")
    waits = {throttle.take("a") for _ in range(100)}
    assert len(waits) == 1


def test_each_caller_apart(clock: Clock) -> None:
    throttle = Throttle(Rate(1, burst=1))
    assert throttle.take("a") == throttle.take("b") == 0
    assert throttle.take("a") > 0


def test_what_is_left_is_told(clock: Clock) -> None:
    throttle = Throttle(Rate(10, burst=20))
    assert throttle.headers("a") == {"RateLimit-Policy": '"key";q=20;w=2', "RateLimit": '"key";r=20'}
    for left in range(19, 0, -1):
        throttle.take("a")
        assert throttle.headers("a")["RateLimit"] == f'"key";r={left}'
    throttle.take("a")
    assert throttle.headers("a")["RateLimit"] == '"key";r=0;t=1'


@given(
    burst=st.integers(1, 20),
    pauses=st.lists(st.integers(0, 3000), max_size=60),
)
def test_as_a_bucket_of_tokens_would(burst: int, pauses: list[int]) -> None:
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rate, "time", clock)
        throttle, thousandths = Throttle(Rate(1, burst=burst)), burst * 1000
        for pause in pauses:
            clock.now = round(clock.now + pause / 1000, 3)
            thousandths = min(burst * 1000, thousandths + pause)
            assert throttle.take("a") == max(0, 1000 - thousandths) / 1000
            if thousandths >= 1000:
                thousandths -= 1000


def test_many_addresses_do_not_fill_the_memory(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    assert rate.MOST <= 10_000
    monkeypatch.setattr(rate, "MOST", 1000)
    throttle = Throttle(Rate(10, per=60, burst=10))
    tracemalloc.start()
    try:
        for n in range(5000):
            throttle.take(network(f"2001:db8:{n >> 16:x}:{n & 0xFFFF:x}::1"))
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used < 400 * rate.MOST


def test_those_are_forgotten_who_have_not_come_for_the_longest_time(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate, "MOST", 3)
    throttle = Throttle(Rate(10, per=60, burst=2))
    for caller in ("a", "b", "c", "a", "d"):
        assert throttle.take(caller) == 0
    assert throttle.take("a") > 0
    assert [throttle.take("b") for _ in range(2)] == [0, 0]


@pytest.mark.parametrize(
    ("host", "whom"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("testclient", "testclient"),
    ],
)
def test_an_address_stands_for_its_network(host: str, whom: str) -> None:
    assert network(host) == whom


@pytest.mark.parametrize(
    "wrong",
    [{"requests": 0}, {"requests": -1}, {"requests": float("nan")}, {"per": 0}, {"per": float("inf")}, {"burst": 0}],
)
def test_a_rate_that_lets_nobody_through_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="rate: "):
        Rate(**{"requests": 1, **wrong})  # type: ignore[arg-type]
