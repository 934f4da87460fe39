"""How one attempt ended, and who decides it: ``judge``, which knows no database and no clock."""

import json
from dataclasses import asdict, dataclass
from datetime import timedelta

from outbox.backoff import Retry, RetryAfter, seconds
from outbox.job import State


@dataclass(frozen=True, slots=True)
class Error:
    """An exception as text, safe to store: lengths cut, no NUL, no lone surrogate."""

    type: str
    message: str
    traceback: str = ""

    def as_json(self) -> str:
        """As a row keeps it."""
        return json.dumps(asdict(self), ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Finished:
    """The job is over: ``state`` is terminal.

    :ivar result: the return value as JSON text, or None if there is none.
    :ivar written: whether the handler's own transaction has written it already.
    """

    state: State
    result: str | None = None
    error: Error | None = None
    written: bool = False


@dataclass(frozen=True, slots=True)
class Postponed:
    """The job waits again, to run after ``delay`` seconds.

    :ivar charged: whether this attempt counts against the retry policy.
    """

    delay: float
    error: Error | None = None
    charged: bool = False


Outcome = Finished | Postponed

RELEASED = Postponed(0.0)
"""Handed back untouched: a shutdown, never the job's fault."""


class Snooze(Exception):
    """Returned or raised by a handler: run me again after ``delay`` (seconds); no attempt is charged."""

    def __init__(self, delay: float | timedelta) -> None:
        self.delay = seconds(delay)
        super().__init__(f"snoozed for {self.delay:g} s")


class Cancel(Exception):
    """Returned or raised by a handler: this job is not wanted any more; it ends as ``cancelled``, without a retry."""


def judge(exception: BaseException, error: Error, retry: Retry, attempt: int, max_attempts: int) -> Outcome:
    """What follows from a handler that did not return: a retry, or the end.

    :param error: the exception as text.
    :param attempt: the number of this attempt, from 1.
    :param max_attempts: the job's own limit.
    """
    match exception:
        case Snooze():
            return Postponed(exception.delay)
        case RetryAfter():
            return Postponed(exception.delay, error)
        case Cancel():
            return Finished(State.CANCELLED, error=error)
    if attempt >= max_attempts:
        return Finished(State.FAILED, error=error)
    delay: float | None
    try:
        delay = retry.next_delay(attempt, exception)
    except Exception:  # noqa: BLE001 - the user's own policy failed: the default delays are better than a lost transition
        delay = Retry().next_delay(attempt, Exception())
    if delay is None:
        return Finished(State.FAILED, error=error)
    return Postponed(delay, error, charged=True)
