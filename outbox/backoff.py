"""When a failed attempt is tried again: ``Retry``, a pure function of the attempt's number and its exception.

Delays are capped before they are randomised, and the exponent before it is used, so that no attempt number overflows.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from types import MappingProxyType

from outbox.errors import DeclarationError

MAX_ATTEMPTS = 32_767
MAX_DELAY = 365 * 86_400.0
"""No delay is longer than a year, in seconds."""

Delay = Callable[[int, BaseException], "float | timedelta | None"]
"""A custom policy: (attempts charged so far, the exception) → the delay, or None to give up."""


class RetryAfter(Exception):
    """Raised by a handler: the other side asked to be left alone for a while. Not charged as an attempt."""

    def __init__(self, delay: float | timedelta, reason: str = "") -> None:
        self.delay = seconds(delay)
        super().__init__(reason or f"retry after {self.delay:g} s")


def seconds(delay: float | timedelta) -> float:
    """A delay in seconds, within what the database's clock can hold; NaN and negative delays are an error."""
    value = delay.total_seconds() if isinstance(delay, timedelta) else float(delay)
    if not value >= 0:  # also refuses NaN
        raise ValueError(f"a delay must be at least 0 seconds, got {value}")
    return min(value, MAX_DELAY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How often, when, and after which exceptions a task is tried again.

    The n-th failed attempt waits ``min(cap, base * factor ** (n - 1))`` seconds, of which the share
    ``jitter`` is random.

    :param max_attempts: attempts in all, 1 to 32,767; 1 means no retry.
    :param base: seconds before the second attempt.
    :param factor: what each further delay is multiplied by; 1 makes all delays equal.
    :param cap: the longest delay in seconds, at most a year.
    :param jitter: the random share of each delay, 0 to 1, so that jobs that failed together do not return together.
    :param on: only these exceptions are retried.
    :param give_up_on: these exceptions are never retried; it wins over ``on``.
    :param per_exception: another policy for some exceptions; the nearest class in the exception's MRO counts.
    :param delay: a function in place of the formula; what it returns is capped, None gives up.
    """

    max_attempts: int = 8
    base: float = 2.0
    factor: float = 2.0
    cap: float = 3600.0
    jitter: float = 0.5
    on: tuple[type[BaseException], ...] = (Exception,)
    give_up_on: tuple[type[BaseException], ...] = ()
    per_exception: Mapping[type[BaseException], "Retry"] = field(default_factory=lambda: MappingProxyType({}))
    delay: Delay | None = None

    def __post_init__(self) -> None:
        rules = (
            ("max_attempts", 1 <= self.max_attempts <= MAX_ATTEMPTS, f"1 to {MAX_ATTEMPTS}"),
            ("base", 0 <= self.base <= MAX_DELAY, f"0 to {MAX_DELAY:.0f} seconds"),
            ("factor", 1 <= self.factor <= 1000, "1 to 1000"),
            ("cap", 0 <= self.cap <= MAX_DELAY, f"0 to {MAX_DELAY:.0f} seconds"),
            ("jitter", 0 <= self.jitter <= 1, "0 to 1"),
        )
        for name, holds, rule in rules:
            if not holds:
                raise DeclarationError(f"Retry({name}={getattr(self, name)!r}): must be {rule}")

    @classmethod
    def fixed(cls, delay: float, *, max_attempts: int = 8, jitter: float = 0.0) -> "Retry":
        """The same delay, in seconds, before every further attempt."""
        return cls(max_attempts=max_attempts, base=delay, factor=1.0, cap=delay, jitter=jitter)

    @staticmethod
    def after(delay: float | timedelta, reason: str = "") -> RetryAfter:
        """To be raised: run this job again after ``delay`` (seconds), without charging an attempt.

        Meant for an answer that names its time, such as HTTP 429 or 503 with ``Retry-After``.
        """
        return RetryAfter(delay, reason)

    def for_exception(self, exception: BaseException) -> "Retry | None":
        """The policy that governs this exception, or None if it is never retried."""
        for kind in type(exception).__mro__:
            if (policy := self.per_exception.get(kind)) is not None:
                return policy
        if isinstance(exception, self.give_up_on) or not isinstance(exception, self.on):
            return None
        return self

    def next_delay(
        self, attempt: int, exception: BaseException, *, draw: Callable[[], float] = random.random
    ) -> float | None:
        """Seconds until the next attempt after attempt number ``attempt`` failed, or None to give up.

        Whether attempts are left is not asked here: the job's own ``max_attempts`` rules (see ``outcome.judge``).

        :param draw: a number in [0, 1), handed in by tests.
        """
        policy = self.for_exception(exception)
        if policy is None:
            return None
        if policy.delay is not None:
            asked = policy.delay(attempt, exception)
            return None if asked is None else seconds(asked)
        return policy._formula(attempt) * (1 - policy.jitter * draw())

    def _formula(self, attempt: int) -> float:
        try:
            return min(self.cap, self.base * self.factor ** max(attempt - 1, 0))
        except OverflowError:
            return self.cap
