"""Tests wait for facts: a condition is asked again and again until it holds, or the deadline makes the test fail."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

DEADLINE = 30.0
"""Seconds after which a fact that has not come is a failure. Generous: no test waits for it unless it fails."""


async def eventually(ask: Callable[[], Awaitable[T]], *, within: float = DEADLINE) -> T:
    """The first true answer to ``ask``."""
    give_up_at = time.monotonic() + within
    while True:
        answer = await ask()
        if answer:
            return answer
        assert time.monotonic() < give_up_at, f"not within {within:g} s; the last answer was {answer!r}"
        await asyncio.sleep(0.02)


async def until(holds: Callable[[], object], *, within: float = DEADLINE) -> None:
    """Return once ``holds()`` is true; for facts that need no waiting to be asked."""

    async def ask() -> object:
        return holds()

    await eventually(ask, within=within)
