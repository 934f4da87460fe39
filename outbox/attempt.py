"""Run one handler once and say how it ended. Never raises, and works without a database."""

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import Any

from outbox import completion
from outbox.context import Claim, JobContext, Stop
from outbox.errors import AttemptTimeout, PayloadInvalid, SoftTimeout, UnexpectedCancel
from outbox.job import State
from outbox.outcome import RELEASED, Cancel, Finished, Outcome, Snooze, judge
from outbox.softlimit import softly
from outbox.task import Task

_SPECIAL = (Finished, Snooze, Cancel)
"""What a handler's call may answer besides its result."""


async def run(task: Task[..., Any], claim: Claim, threads: Executor) -> Outcome:
    """Decode the arguments, call the handler within its time limit, encode the result or judge the failure.

    :param threads: where handlers that are plain functions run.
    """
    if claim.stop is not None:  # told to stop before it began
        return ended_by(task, claim, asyncio.CancelledError())
    try:
        arguments = task.arguments(claim.payload, claim.version, claim.id)
        claim.secrets = task.secrets(arguments)
    except PayloadInvalid as exc:
        # By the retry policy, not at once: a deploy that changed the handler can still be mended or rolled back.
        return _judged(task, claim, exc)
    for name in task.contexts:
        arguments[name] = JobContext(claim)
    try:
        if task.is_plain:
            value = await task.handler(**arguments)
        else:
            value = await _limited(task, claim, arguments, threads)
    except BaseException as exc:  # noqa: BLE001 - SystemExit, too, is a handler's failure and not the worker's
        return ended_by(task, claim, exc)
    if isinstance(value, _SPECIAL):
        return value if isinstance(value, Finished) else _judged(task, claim, value)
    return Finished(State.SUCCEEDED, *task.encode_result(value, claim.id))


async def _limited(task: Task[..., Any], claim: Claim, arguments: dict[str, Any], threads: Executor) -> Any:
    if not task.is_async:
        # A thread cannot be cancelled: its limit is kept by _in_thread.
        return await _resolved(task, partial(_in_thread, task, claim, threads=threads), arguments)
    call = task.handler if task.session is None else partial(completion.run, task, claim)
    if task.timeout is None:
        return await _resolved(task, call, arguments)
    limit = asyncio.timeout(task.timeout)
    try:
        async with limit:
            running = _resolved(task, call, arguments)
            if task.bounds.soft_timeout is None:
                return await running
            return await softly(running, task.bounds.soft_timeout, lambda: not claim.settling)
    except TimeoutError:
        if not limit.expired():
            raise
        claim.stop = claim.stop or Stop.TIMEOUT
        raise AttemptTimeout(f"ran longer than {task.timeout:g} s") from None


async def _resolved(task: Task[..., Any], call: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    if task.resolver is None:
        return await call(**arguments)

    async def body(dependencies: dict[str, Any]) -> Any:
        return await call(**arguments, **dependencies)

    return await task.resolver(body)


async def _in_thread(task: Task[..., Any], claim: Claim, /, threads: Executor, **arguments: Any) -> Any:
    """Run the handler in a thread and wait until it ends, however late: so long it keeps its slot and its lease."""
    loop = asyncio.get_running_loop()
    call = partial(_caught, partial(task.handler, **arguments))
    future = loop.run_in_executor(threads, contextvars.copy_context().run, call)
    timer = loop.call_later(task.timeout, _time_out, claim) if task.timeout is not None else None
    while True:
        try:
            value, exception = await asyncio.shield(future)
            break
        except asyncio.CancelledError:
            continue  # claim.stop tells the handler; there is no other way to reach a thread
    if timer is not None:
        timer.cancel()
    if claim.stop is Stop.TIMEOUT:
        raise AttemptTimeout(f"ran longer than {task.timeout:g} s") from exception
    if exception is not None:
        raise exception
    if claim.stop is not None:
        # It may have ended early because it was told to. To take that for success could lose the rest of its work.
        raise asyncio.CancelledError
    return value


def _caught(call: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    # As a value, because a future refuses some exceptions (StopIteration) and would then never be done.
    try:
        return call(), None
    except BaseException as exc:  # noqa: BLE001 - the same
        return None, exc


def _time_out(claim: Claim) -> None:
    claim.stop = claim.stop or Stop.TIMEOUT


def ended_by(task: Task[..., Any], claim: Claim, exception: BaseException) -> Outcome:
    """What follows from an attempt that did not return: why it was told to stop counts, if it was."""
    match claim.stop:
        case Stop.CANCELLED:
            return Finished(State.CANCELLED)
        case Stop.SHUTDOWN | Stop.LEASE_LOST:
            return RELEASED
    # Both with the place where it was: what takes so long, or who cancels, is what people ask.
    if isinstance(exception, SoftTimeout):
        exception = AttemptTimeout(str(exception)).with_traceback(exception.__traceback__)
    elif isinstance(exception, asyncio.CancelledError):
        said = "the handler raised CancelledError, but nobody had cancelled it"
        exception = UnexpectedCancel(said).with_traceback(exception.__traceback__)
    return _judged(task, claim, exception)


def _judged(task: Task[..., Any], claim: Claim, exception: BaseException) -> Outcome:
    return judge(exception, task.describe(exception, claim.secrets), task.retry, claim.attempt, claim.max_attempts)
