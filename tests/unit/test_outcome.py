"""What follows from an exception: a retry or the end."""

from datetime import timedelta
from typing import Any

import pytest

from outbox import Cancel, Retry, Snooze, State
from outbox.outcome import RELEASED, Error, Finished, Outcome, Postponed, judge

ERROR = Error("ValueError", "boom")
PLAIN = Retry(base=5, jitter=0, max_attempts=3)


def named(value: object) -> str | None:
    return repr(value) if isinstance(value, BaseException) else None


def judged(exception: BaseException, retry: Retry = PLAIN, *, attempt: int = 1, limit: int = 3) -> Outcome:
    return judge(exception, ERROR, retry, attempt, limit)


FAILED = Finished(State.FAILED, error=ERROR)


@pytest.mark.parametrize(
    ("exception", "attempt", "expected"),
    [
        (ValueError(), 1, Postponed(5, ERROR, charged=True)),
        (ValueError(), 2, Postponed(10, ERROR, charged=True)),
        (ValueError(), 3, FAILED),
        (ValueError(), 4, FAILED),
        (SystemExit(), 1, FAILED),
        (KeyboardInterrupt(), 1, FAILED),
        (Snooze(7), 1, Postponed(7)),
        (Snooze(7), 3, Postponed(7)),
        (Snooze(timedelta(hours=1)), 99, Postponed(3600)),
        (Retry.after(7), 1, Postponed(7, ERROR)),
        (Retry.after(7), 3, Postponed(7, ERROR)),
        (Cancel("no"), 1, Finished(State.CANCELLED, error=ERROR)),
        (Cancel("no"), 3, Finished(State.CANCELLED, error=ERROR)),
        (ExceptionGroup("many", [ValueError()]), 1, Postponed(5, ERROR, charged=True)),
        (BaseExceptionGroup("many", [SystemExit()]), 1, FAILED),
    ],
    ids=named,
)
def test_what_follows(exception: BaseException, attempt: int, expected: Outcome) -> None:
    assert judged(exception, attempt=attempt) == expected


def test_the_jobs_own_limit_rules_and_not_the_policys() -> None:
    assert judged(ValueError(), attempt=1, limit=1) == FAILED
    assert isinstance(judged(ValueError(), attempt=9, limit=10), Postponed)


def test_giving_up_ends_the_job_at_once() -> None:
    assert judged(ValueError(), Retry(give_up_on=(ValueError,))) == FAILED
    assert judged(ValueError(), Retry(delay=lambda _attempt, _exception: None)) == FAILED


def raises(_attempt: int, _exception: BaseException) -> float:
    raise RuntimeError("the policy is broken")


@pytest.mark.parametrize(
    "custom",
    [raises, lambda _a, _e: -1.0, lambda _a, _e: float("nan"), lambda _a, _e: "soon"],
    ids=["raises", "negative", "nan", "text"],
)
def test_a_broken_policy_costs_no_transition(custom: Any) -> None:
    outcome = judged(ValueError(), Retry(delay=custom))
    assert isinstance(outcome, Postponed)
    assert outcome.charged
    assert outcome.error == ERROR
    assert 0 < outcome.delay <= 3600


def test_a_broken_policy_for_an_exception_that_is_none_costs_no_transition() -> None:
    assert isinstance(judged(SystemExit(), Retry(on=(BaseException,), delay=raises)), Postponed)


def test_a_release_charges_nothing_and_says_nothing() -> None:
    assert (RELEASED.delay, RELEASED.error, RELEASED.charged) == (0.0, None, False)


@pytest.mark.parametrize("delay", [-1, float("nan"), timedelta(seconds=-1)])
def test_a_senseless_snooze_is_refused(delay: Any) -> None:
    with pytest.raises(ValueError, match="at least 0"):
        Snooze(delay)
