"""When cron expressions fire, at both edges of summer time and everywhere else."""

from datetime import UTC, datetime, timedelta
from itertools import islice, takewhile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outbox.cron import Cron

ZONES = ["UTC", "Europe/London", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "Africa/Cairo"]
EXPRESSIONS = ["* * * * *", "30 2 * * *", "15 1 * * *", "0 */2 * * *", "59 23 * * SUN", "30 * * * *", "0 0 1 * *"]

START = datetime(2025, 1, 1, tzinfo=UTC)
moments = st.timedeltas(timedelta(), timedelta(days=1100)).map(lambda passed: START + passed)


def fires(expression: str, tz: str, start: str, count: int = 3) -> list[str]:
    return [each.isoformat() for each in islice(Cron(expression, tz).after(datetime.fromisoformat(start)), count)]


@pytest.mark.parametrize(
    ("expression", "tz", "start", "expected"),
    [
        ("0 9 * * MON-FRI", "UTC", "2026-11-20T10:00Z", ["2026-11-23T09:00", "2026-11-24T09:00", "2026-11-25T09:00"]),
        ("@daily", "Asia/Kathmandu", "2026-11-20T00:00Z", ["2026-11-20T18:15", "2026-11-21T18:15"]),
        ("@hourly", "UTC", "2026-11-20T00:00Z", ["2026-11-20T01:00", "2026-11-20T02:00"]),
        ("@weekly", "UTC", "2026-11-20T00:00Z", ["2026-11-22T00:00", "2026-11-29T00:00"]),
        ("@monthly", "UTC", "2026-11-20T00:00Z", ["2026-12-01T00:00", "2027-01-01T00:00"]),
        ("@yearly", "UTC", "2026-11-20T00:00Z", ["2027-01-01T00:00", "2028-01-01T00:00"]),
        ("*/20 * * * * *", "UTC", "2026-11-20T00:00Z", ["2026-11-20T00:00:20", "2026-11-20T00:00:40"]),
        ("0 0 29 2 *", "UTC", "2026-01-01T00:00Z", ["2028-02-29T00:00", "2032-02-29T00:00"]),
        ("0 0 31 * *", "UTC", "2026-01-31T00:00Z", ["2026-03-31T00:00", "2026-05-31T00:00"]),
        # The hour that is missing: once, at the next moment that is there.
        ("30 1 * * *", "Europe/London", "2026-03-28T12:00Z", ["2026-03-29T01:00", "2026-03-30T00:30"]),
        ("30 2 * * *", "America/New_York", "2026-03-08T00:00Z", ["2026-03-08T07:00", "2026-03-09T06:30"]),
        ("15 2 * * *", "Australia/Lord_Howe", "2026-10-03T12:00Z", ["2026-10-03T15:30", "2026-10-04T15:15"]),
        # The hour that comes twice: once, the first time; and by the time that passes where there is a star.
        ("30 1 * * *", "Europe/London", "2026-10-24T12:00Z", ["2026-10-25T00:30", "2026-10-26T01:30"]),
        ("30 1 * * *", "America/New_York", "2026-11-01T00:00Z", ["2026-11-01T05:30", "2026-11-02T06:30"]),
        ("45 1 * * *", "Australia/Lord_Howe", "2026-04-04T12:00Z", ["2026-04-04T14:45", "2026-04-05T15:15"]),
        ("30 * * * *", "Europe/London", "2026-10-24T23:45Z", ["2026-10-25T00:30", "2026-10-25T01:30"]),
        # Asked within the hour that comes twice, the second time: not that of an hour ago.
        ("30 1 * * *", "Europe/London", "2026-10-25T01:10Z", ["2026-10-26T01:30"]),
    ],
)
def test_it_fires_then(expression: str, tz: str, start: str, expected: list[str]) -> None:
    seen = fires(expression, tz, start, len(expected))
    assert seen == [datetime.fromisoformat(each + "+00:00").isoformat() for each in expected]


@given(st.sampled_from(EXPRESSIONS), st.sampled_from(ZONES), moments)
@settings(max_examples=300, deadline=None)
def test_the_latest_is_the_last_of_those_that_came(expression: str, tz: str, moment: datetime) -> None:
    cron = Cron(expression, tz)
    latest = cron.latest(moment)
    assert latest is not None
    assert latest <= moment
    assert next(cron.after(latest)) > moment
    long_ago = latest - timedelta(days=2)
    came = [each for each in takewhile(lambda each: each <= moment, cron.after(long_ago)) if each >= latest]
    assert came == [latest]


@given(st.sampled_from(EXPRESSIONS), st.sampled_from(ZONES), moments)
@settings(max_examples=100, deadline=None)
def test_moments_only_grow(expression: str, tz: str, moment: datetime) -> None:
    walk = list(islice(Cron(expression, tz).after(moment), 60))
    assert walk == sorted(set(walk))
    for each in walk[::10]:
        assert next(Cron(expression, tz).after(each - timedelta(microseconds=1))) == each


@pytest.mark.parametrize(
    "expression", ["", "@never", "* * * *", "61 * * * *", "0 0 30 2 *", "0 0 31 4,6 *", "x * * * *", "* * * * * * *"]
)
def test_an_expression_that_is_none_is_refused(expression: str) -> None:
    with pytest.raises(ValueError, match="cron"):
        Cron(expression)


@pytest.mark.parametrize("tz", ["Mars/Olympus", "", "../etc/passwd", "Europe"])
def test_a_time_zone_that_is_none_is_refused(tz: str) -> None:
    with pytest.raises(ValueError, match="tz"):
        Cron("* * * * *", tz)
