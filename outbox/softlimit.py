"""The soft time limit of a coroutine: ``SoftTimeout`` is raised where it waits, and it may end in its own way."""

import asyncio
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any

from outbox.errors import SoftTimeout


@types.coroutine
def softly(
    coroutine: Coroutine[Any, Any, Any], seconds: float, may_interrupt: Callable[[], bool]
) -> Generator[Any, Any, Any]:
    """Await the coroutine, and raise ``SoftTimeout`` in it when the time is over, once.

    What it waits for is cancelled, as by ``Task.cancel``, but the exception that it then sees is another: one that
    is a ``CancelledError`` too, so that task groups and timeouts within it clean up as they do for any cancellation.

    :param may_interrupt: asked when the time is over; if not, it is left alone for good.
    """
    task = asyncio.current_task()
    assert task is not None
    is_due = False

    def interrupt() -> None:
        nonlocal is_due
        if may_interrupt():
            is_due = task.cancel()

    timer = asyncio.get_running_loop().call_later(seconds, interrupt)
    resume: Callable[[Any], Any] = coroutine.send
    given: Any = None
    try:
        while True:
            try:
                awaited = resume(given)
            except StopIteration as stop:
                return stop.value
            try:
                resume, given = coroutine.send, (yield awaited)
            except BaseException as exc:  # noqa: BLE001 - whatever it is, it is the coroutine's
                resume, given = coroutine.throw, exc
                if is_due and isinstance(exc, asyncio.CancelledError):
                    is_due = False
                    # Cancelled for another reason as well: that one counts.
                    if task.uncancel() == 0:
                        given = SoftTimeout(f"ran longer than its soft limit of {seconds:g} s")
    finally:
        timer.cancel()
        if is_due:  # something within it took the cancellation for its own
            task.uncancel()
