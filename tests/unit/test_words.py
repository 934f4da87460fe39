"""Numbers, times and schedules are said as people say them."""

from datetime import UTC, datetime, timedelta

import pytest

from outbox import words

NOW = datetime(2026, 11, 21, tzinfo=UTC)


@pytest.mark.parametrize(
    ("count", "said"), [(0, "0"), (0.04, "0"), (2.5, "2.5"), (9.0, "9"), (1234, "1,234"), (10_000, "10,000 or more")]
)
def test_numbers(count: float, said: str) -> None:
    assert words.number(count, 10_000) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 ms"), (0.0204, "20 ms"), (1, "1 s"), (1.5, "1.5 s"), (90, "1.5 min"), (7200, "2 h"), (864_000, "10 d")],
)  # fmt: skip
def test_spans(seconds: float, said: str) -> None:
    assert words.span(seconds) == said


def test_distances() -> None:
    assert words.distance(NOW, NOW) == "now"
    assert words.distance(NOW - timedelta(seconds=30), NOW) == "30 s ago"
    assert words.distance(NOW + timedelta(hours=1), NOW) == "in 1 h"


@pytest.mark.parametrize(
    ("expression", "tz", "said"),
    [
        ("30 9 * * MON-FRI", "UTC", "At 09:30, Monday through Friday"),
        ("@daily", "Europe/Berlin", "At 00:00, Europe/Berlin"),
        ("*/10 * * * * *", "UTC", "Every 10 seconds"),
        ("what is this", "UTC", "what is this"),
    ],
)
def test_schedules(expression: str, tz: str, said: str) -> None:
    assert words.schedule(expression, tz) == said
