"""How long, in how much memory and where a handler may run: ``Bounds``, declared with its task."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from outbox.errors import DeclarationError

Isolation = Literal["process"]

WEEK = 7 * 86_400

SMALLEST = 64 * 2**20
"""Bytes. An interpreter that has loaded the library and a handler's imports takes most of this already."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """The limits of one attempt. None is no limit.

    :ivar timeout: seconds after which the attempt is over.
    :ivar soft_timeout: seconds after which ``SoftTimeout`` is raised in the handler.
    :ivar isolation: "process", if the handler runs in a child process.
    :ivar memory: bytes that it may have there.
    """

    timeout: float | None = None
    soft_timeout: float | None = None
    isolation: Isolation | None = None
    memory: int | None = None

    def check(self, name: str, handler: Callable[..., Any]) -> None:
        """Refuse what cannot be kept.

        :raises DeclarationError: with what to write instead.
        """
        for problem in (self._wrong_times(), self._wrong_isolation(handler)):
            if problem is not None:
                raise DeclarationError(f"task {name!r}: {problem}")

    def _wrong_times(self) -> str | None:
        if self.timeout is not None and not 0 < self.timeout <= WEEK:
            return f"timeout={self.timeout}; must be above 0 and at most a week, in seconds"
        if self.soft_timeout is not None and not 0 < self.soft_timeout < (self.timeout or 0):
            return (
                f"soft_timeout={self.soft_timeout}; must be above 0 and below timeout, which is what ends a handler "
                "that does not heed it"
            )
        return None

    def _wrong_isolation(self, handler: Callable[..., Any]) -> str | None:
        if self.isolation not in (None, "process"):
            return f"isolation={self.isolation!r}; must be 'process', or left out"
        is_async = inspect.iscoroutinefunction(handler)
        if self.isolation and is_async:
            return "an async handler runs on the worker's event loop; write def for isolation='process'"
        if self.soft_timeout is not None and not (is_async or self.isolation):
            return (
                "soft_timeout= cannot reach a thread; look at ctx.cancelled, which timeout= sets, or write "
                "isolation='process'"
            )
        if self.memory is not None and not self.isolation:
            return "memory_limit= is that of a process; write isolation='process' too"
        if self.memory is not None and self.memory < SMALLEST:
            return f"memory_limit={self.memory}; must be at least {SMALLEST:,} bytes"
        return None
