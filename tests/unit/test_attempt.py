"""One run of one handler, without a database: whatever the handler does, there is an outcome and never an exception."""

import asyncio
import contextlib
import contextvars
import dataclasses
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import pytest
from pydantic import BaseModel

from outbox import INJECTED, Cancel, Depends, JobContext, Outbox, Retry, Snooze, State, Task, attempt
from outbox.context import Claim, Stop
from outbox.errors import SoftTimeout
from outbox.outcome import RELEASED, Finished, Outcome, Postponed
from tests import factories
from tests.waiting import until

RETRY = Retry(base=5, jitter=0, max_attempts=3)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


def task_of(handler: Callable[..., Any], **options: Any) -> Task[..., Any]:
    task: Task[..., Any] = Outbox().task(**{"name": "t", "retry": RETRY, **options})(handler)
    return task


def claim(payload: str = "{}", **fields: Any) -> Claim:
    return factories.held(factories.new_id(), payload=payload, **{"max_attempts": 3, **fields})


async def run(threads: ThreadPoolExecutor, handler: Callable[..., Any], payload: str = "{}", **options: Any) -> Outcome:
    return await attempt.run(task_of(handler, **options), claim(payload), threads)


def failure(outcome: Outcome) -> str:
    assert outcome.error is not None
    return outcome.error.type


# Returning.


async def test_a_coroutine_runs_on_the_loop(threads: ThreadPoolExecutor) -> None:
    async def handler(n: int, text: str = "x") -> list[Any]:
        return [n + 1, text, threading.current_thread() is threading.main_thread()]

    assert await run(threads, handler, '{"n": 1}') == Finished(State.SUCCEEDED, '[2,"x",true]')


async def test_a_plain_function_runs_in_a_thread(threads: ThreadPoolExecutor) -> None:
    def handler(n: int) -> list[Any]:
        return [n + 1, threading.current_thread() is threading.main_thread()]

    assert await run(threads, handler, '{"n": 1}') == Finished(State.SUCCEEDED, "[2,false]")


class Receipt(BaseModel):
    number: int


async def test_the_result_is_written_as_the_return_annotation_says(threads: ThreadPoolExecutor) -> None:
    async def typed() -> Receipt:
        return Receipt(number=7)

    async def nothing() -> None: ...

    async def untyped():  # type: ignore[no-untyped-def]  # noqa: ANN202, RUF100
        return {"a": Receipt(number=7)}

    async def mistyped() -> int:
        return "text"  # type: ignore[return-value]

    assert await run(threads, typed) == Finished(State.SUCCEEDED, '{"number":7}')
    assert await run(threads, nothing) == Finished(State.SUCCEEDED)
    assert await run(threads, untyped) == Finished(State.SUCCEEDED, '{"a":{"number":7}}')
    assert await run(threads, mistyped) == Finished(State.SUCCEEDED, '"text"')


async def test_a_result_that_cannot_be_stored_is_a_success_all_the_same(threads: ThreadPoolExecutor) -> None:
    async def handler() -> Any:
        return object()

    outcome = await run(threads, handler)
    assert isinstance(outcome, Finished)
    assert (outcome.state, outcome.result) == (State.SUCCEEDED, None)
    assert failure(outcome) == "outbox.errors.ResultNotStored"


# Raising.


class Odd(BaseException):
    pass


class Mute(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


RETRIED = [ValueError("x"), StopAsyncIteration(), ExceptionGroup("g", [ValueError()]), TimeoutError(), Mute()]
FINAL = [SystemExit(1), KeyboardInterrupt(), GeneratorExit(), Odd(), BaseExceptionGroup("g", [SystemExit()])]


def raiser(exception: BaseException, *, thread: bool) -> Callable[..., Any]:
    async def in_loop() -> None:
        raise exception

    def in_thread() -> None:
        raise exception

    return in_thread if thread else in_loop


@pytest.mark.parametrize("thread", [False, True], ids=["loop", "thread"])
@pytest.mark.parametrize("exception", RETRIED, ids=lambda exception: type(exception).__name__)
async def test_an_exception_is_retried(threads: ThreadPoolExecutor, exception: BaseException, thread: bool) -> None:
    outcome = await run(threads, raiser(exception, thread=thread))
    assert isinstance(outcome, Postponed)
    assert (outcome.delay, outcome.charged) == (5, True)
    assert failure(outcome).endswith(type(exception).__name__)


@pytest.mark.parametrize("thread", [False, True], ids=["loop", "thread"])
@pytest.mark.parametrize("exception", FINAL, ids=lambda exception: type(exception).__name__)
async def test_an_exit_is_the_handlers_failure_and_not_the_workers(
    threads: ThreadPoolExecutor, exception: BaseException, thread: bool
) -> None:
    outcome = await run(threads, raiser(exception, thread=thread))
    assert isinstance(outcome, Finished)
    assert outcome.state is State.FAILED
    assert failure(outcome).endswith(type(exception).__name__)


async def test_stop_iteration_from_a_thread_does_not_hang(threads: ThreadPoolExecutor) -> None:
    outcome = await run(threads, raiser(StopIteration(), thread=True))
    assert failure(outcome) in ("StopIteration", "RuntimeError")
    outcome = await run(threads, raiser(StopIteration(), thread=False))
    assert failure(outcome) == "RuntimeError"  # as Python says it of a coroutine


@pytest.mark.parametrize("thread", [False, True], ids=["loop", "thread"])
async def test_a_cancelled_error_that_nobody_asked_for_is_an_ordinary_failure(
    threads: ThreadPoolExecutor, thread: bool
) -> None:
    outcome = await run(threads, raiser(asyncio.CancelledError(), thread=thread))
    assert isinstance(outcome, Postponed)
    assert outcome.charged
    assert failure(outcome) == "outbox.errors.UnexpectedCancel"


async def test_the_last_attempt_is_the_last(threads: ThreadPoolExecutor) -> None:
    task = task_of(raiser(ValueError(), thread=False))
    assert isinstance(await attempt.run(task, claim(attempt=2), threads), Postponed)
    assert isinstance(await attempt.run(task, claim(attempt=3), threads), Finished)


@pytest.mark.parametrize("thread", [False, True], ids=["loop", "thread"])
@pytest.mark.parametrize(
    ("value", "raised", "expected"),
    [
        (Snooze(9), True, Postponed(9)),
        (Snooze(9), False, Postponed(9)),
        (Retry.after(9), True, Postponed(9)),
        (Cancel("no"), True, Finished(State.CANCELLED)),
        (Cancel("no"), False, Finished(State.CANCELLED)),
    ],
    ids=["snooze-raised", "snooze-returned", "retry-after-raised", "cancel-raised", "cancel-returned"],
)
async def test_a_handler_steers_its_job(
    threads: ThreadPoolExecutor, value: BaseException, raised: bool, expected: Outcome, thread: bool
) -> None:
    def steer() -> Any:
        if raised:
            raise value
        return value

    async def steer_in_loop() -> Any:
        return steer()

    outcome = await run(threads, steer if thread else steer_in_loop)
    assert dataclasses.replace(outcome, error=None) == expected
    if not isinstance(value, Snooze):
        assert outcome.error is not None
        assert outcome.error.message == str(value)


@pytest.mark.parametrize("payload", ["{}", '{"n": "x"}', "[1]", '{"n": ' + "[" * 4000])
async def test_a_payload_that_does_not_fit_is_retried_like_a_failure(threads: ThreadPoolExecutor, payload: str) -> None:
    async def handler(n: int) -> None: ...

    outcome = await run(threads, handler, payload)
    assert isinstance(outcome, Postponed)
    assert failure(outcome) == "outbox.errors.PayloadInvalid"


# Time limits.


async def test_a_coroutine_beyond_its_limit_is_stopped(threads: ThreadPoolExecutor) -> None:
    ended = []

    async def handler() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    outcome = await run(threads, handler, timeout=0.01)
    assert isinstance(outcome, Postponed)
    assert (failure(outcome), outcome.charged) == ("outbox.errors.AttemptTimeout", True)
    assert ended == [True]


async def test_a_handlers_own_timeout_error_is_its_own(threads: ThreadPoolExecutor) -> None:
    async def handler() -> None:
        async with asyncio.timeout(0):
            await asyncio.Event().wait()

    assert failure(await run(threads, handler, timeout=60)) == "TimeoutError"


async def test_a_thread_beyond_its_limit_keeps_its_slot_until_it_ends(threads: ThreadPoolExecutor) -> None:
    release, saw = threading.Event(), list[bool]()

    def handler(*, ctx: JobContext = INJECTED) -> str:
        release.wait()
        saw.append(ctx.cancelled)
        return "too late"

    held = claim()
    running = asyncio.create_task(attempt.run(task_of(handler, timeout=0.01), held, threads))
    await until(lambda: held.stop is not None)
    assert held.stop is Stop.TIMEOUT
    running.cancel()
    await asyncio.sleep(0)
    assert not running.done()
    release.set()
    assert failure(await running) == "outbox.errors.AttemptTimeout"
    assert saw == [True]


# The soft time limit.


async def softly_limited(threads: ThreadPoolExecutor, handler: Callable[..., Any], **options: Any) -> Outcome:
    return await run(threads, handler, **{"soft_timeout": 0.01, "timeout": 3600, **options})


async def test_the_soft_limit_lets_a_coroutine_clean_up_and_succeed(threads: ThreadPoolExecutor) -> None:
    async def handler() -> Any:
        try:
            await asyncio.Event().wait()
        except SoftTimeout:
            async with asyncio.timeout(30):  # the cancellation is over: what waits now is not cancelled again
                await asyncio.sleep(0)
            task = asyncio.current_task()
            return [task.cancelling() if task else None]

    assert await softly_limited(threads, handler) == Finished(State.SUCCEEDED, "[0]")


async def test_a_coroutine_that_does_not_catch_the_soft_limit_has_timed_out(threads: ThreadPoolExecutor) -> None:
    async def handler() -> None:
        with contextlib.suppress(Exception):  # which it is none of
            await asyncio.Event().wait()

    outcome = await softly_limited(threads, handler)
    assert isinstance(outcome, Postponed)
    assert (failure(outcome), outcome.charged) == ("outbox.errors.AttemptTimeout", True)
    assert outcome.error is not None
    assert "soft limit of 0.01 s" in outcome.error.message
    assert "Event().wait()" in outcome.error.traceback


async def test_the_soft_limit_passes_through_task_groups_and_timeouts_which_clean_up(
    threads: ThreadPoolExecutor,
) -> None:
    ended = []

    async def part() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    async def handler() -> str:
        try:
            async with asyncio.timeout(3000), asyncio.TaskGroup() as group:
                group.create_task(part())
                group.create_task(part())
        except SoftTimeout:
            return f"cleaned up {len(ended)}"
        return "?"

    assert await softly_limited(threads, handler) == Finished(State.SUCCEEDED, '"cleaned up 2"')


async def test_the_hard_limit_ends_who_does_not_heed_the_soft_one(threads: ThreadPoolExecutor) -> None:
    seen = []

    async def handler() -> None:
        try:
            await asyncio.Event().wait()
        except SoftTimeout:
            seen.append(True)
            await asyncio.Event().wait()

    outcome = await softly_limited(threads, handler, timeout=0.05)
    assert outcome.error is not None
    assert outcome.error.message == "ran longer than 0.05 s"
    assert seen == [True]


async def test_both_limits_at_once_are_the_hard_one(threads: ThreadPoolExecutor) -> None:
    async def handler() -> None:
        time.sleep(0.05)  # noqa: ASYNC251 - so that both are over when the event loop looks
        with contextlib.suppress(SoftTimeout):
            await asyncio.Event().wait()

    outcome = await softly_limited(threads, handler, timeout=0.02)
    assert outcome.error is not None
    assert outcome.error.message == "ran longer than 0.02 s"


async def test_a_soft_limit_that_is_not_reached_leaves_no_trace(threads: ThreadPoolExecutor) -> None:
    async def returns() -> int:
        await asyncio.sleep(0)
        return 7

    async def fails() -> None:
        await asyncio.sleep(0)
        raise ValueError

    assert await softly_limited(threads, returns, soft_timeout=3000) == Finished(State.SUCCEEDED, "7")
    assert failure(await softly_limited(threads, fails, soft_timeout=3000)) == "ValueError"
    assert await softly_limited(threads, returns) == Finished(State.SUCCEEDED, "7")
    await asyncio.sleep(0.05)  # the limit's moment comes, and nothing happens


async def test_a_soft_limit_that_something_within_swallows_does_not_count_later(threads: ThreadPoolExecutor) -> None:
    async def stubborn() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    async def handler() -> int:
        await asyncio.create_task(stubborn())
        return 7

    assert await softly_limited(threads, handler) == Finished(State.SUCCEEDED, "7")
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_commit_is_not_interrupted_by_the_soft_limit(threads: ThreadPoolExecutor) -> None:
    held = claim(settling=True)

    async def handler() -> str:
        await asyncio.sleep(0.05)
        return "committed"

    task = task_of(handler, soft_timeout=0.01, timeout=3600)
    assert await attempt.run(task, held, threads) == Finished(State.SUCCEEDED, '"committed"')


# Being stopped.


async def stopped(
    threads: ThreadPoolExecutor, handler: Callable[..., Any], why: Stop, started: asyncio.Event
) -> Outcome:
    held = claim()
    running = asyncio.create_task(attempt.run(task_of(handler), held, threads))
    await asyncio.wait_for(started.wait(), 30)
    held.stop = why
    running.cancel()
    return await running


STOPS = [(Stop.CANCELLED, Finished(State.CANCELLED)), (Stop.SHUTDOWN, RELEASED), (Stop.LEASE_LOST, RELEASED)]


@pytest.mark.parametrize("thread", [False, True], ids=["loop", "thread"])
@pytest.mark.parametrize(("why", "expected"), STOPS)
async def test_what_was_stopped_before_it_began_never_runs(
    threads: ThreadPoolExecutor, why: Stop, expected: Outcome, thread: bool
) -> None:
    ran = []

    async def in_loop() -> None:
        ran.append(True)

    def in_thread() -> None:
        ran.append(True)

    task = task_of(in_thread if thread else in_loop)
    assert await attempt.run(task, claim(stop=why), threads) == expected
    assert ran == []


@pytest.mark.parametrize(("why", "expected"), STOPS)
async def test_a_stopped_coroutine_ends_as_its_stop_says(
    threads: ThreadPoolExecutor, why: Stop, expected: Outcome
) -> None:
    started = asyncio.Event()

    async def handler() -> None:
        started.set()
        await asyncio.Event().wait()

    assert await stopped(threads, handler, why, started) == expected


@pytest.mark.parametrize(("why", "expected"), STOPS)
async def test_an_exception_on_the_way_out_does_not_charge_an_attempt(
    threads: ThreadPoolExecutor, why: Stop, expected: Outcome
) -> None:
    started = asyncio.Event()

    async def handler() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("while cleaning up")

    assert await stopped(threads, handler, why, started) == expected


async def test_work_that_is_done_in_spite_of_a_stop_is_done(threads: ThreadPoolExecutor) -> None:
    started = asyncio.Event()

    async def handler() -> str:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "done all the same"
        return "?"

    outcome = await stopped(threads, handler, Stop.SHUTDOWN, started)
    assert outcome == Finished(State.SUCCEEDED, '"done all the same"')


@pytest.mark.parametrize(("why", "expected"), STOPS)
async def test_a_thread_that_heeds_its_stop_ends_as_the_stop_says(
    threads: ThreadPoolExecutor, why: Stop, expected: Outcome
) -> None:
    started, loop = asyncio.Event(), asyncio.get_running_loop()
    waiting = threading.Event()

    def handler(*, ctx: JobContext = INJECTED) -> str:
        loop.call_soon_threadsafe(started.set)
        while not ctx.cancelled:
            waiting.wait(0.01)
        return "half done"

    assert await stopped(threads, handler, why, started) == expected


# The context.


async def test_the_context_tells_the_job(threads: ThreadPoolExecutor) -> None:
    seen: list[JobContext] = []

    async def handler(*, ctx: JobContext = INJECTED) -> None:
        seen.append(ctx)
        ctx.progress(1, 4, "quarter")

    held = claim(attempt=3, fence=9, max_attempts=3)
    await attempt.run(task_of(handler), held, threads)
    [ctx] = seen
    assert (ctx.id, ctx.task, ctx.queue, ctx.attempt, ctx.max_attempts, ctx.fence) == (
        held.id, "noop", "default", 3, 3, 9,
    )  # fmt: skip
    assert (ctx.worker_id, ctx.run_at, ctx.created_at) == (factories.WORKER, factories.EPOCH, factories.EPOCH)
    assert ctx.is_last_attempt
    assert not ctx.cancelled
    assert held.progress is not None
    assert json.loads(held.progress) == {"done": 1, "total": 4, "message": "quarter"}


VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="clean")


@pytest.mark.parametrize("thread", [False, True], ids=["loop", "thread"])
async def test_context_variables_do_not_leak_from_one_job_to_the_next(
    threads: ThreadPoolExecutor, thread: bool
) -> None:
    def look() -> str:
        found = VARIABLE.get()
        VARIABLE.set("dirty")
        return found

    async def look_in_loop() -> str:
        return look()

    for _ in range(8):
        outcome = await asyncio.create_task(run(threads, look if thread else look_in_loop))
        assert outcome == Finished(State.SUCCEEDED, '"clean"')
    assert VARIABLE.get() == "clean"


# Dependencies.


async def test_dependencies_are_opened_and_closed_around_the_handler(threads: ThreadPoolExecutor) -> None:
    said: list[str] = []

    async def resource() -> AsyncIterator[str]:
        said.append("open")
        try:
            yield "resource"
        except ValueError as exc:
            said.append(f"saw {exc}")
            raise
        finally:
            said.append("close")

    async def handler(fails: bool, *, given: Annotated[str, Depends(resource)] = INJECTED) -> str:
        said.append(f"run with {given}")
        if fails:
            raise ValueError("boom")
        return given

    assert await run(threads, handler, '{"fails": false}') == Finished(State.SUCCEEDED, '"resource"')
    assert said == ["open", "run with resource", "close"]
    said.clear()
    assert failure(await run(threads, handler, '{"fails": true}')) == "ValueError"
    assert said == ["open", "run with resource", "saw boom", "close"]


@pytest.mark.parametrize("at", ["open", "close"])
async def test_a_dependency_that_fails_is_a_failure_of_the_attempt(threads: ThreadPoolExecutor, at: str) -> None:
    async def resource() -> AsyncIterator[int]:
        if at == "open":
            raise LookupError
        yield 1
        raise LookupError

    async def handler(*, given: Annotated[int, Depends(resource)] = INJECTED) -> int:
        return given

    assert failure(await run(threads, handler)) == "LookupError"


async def test_a_plain_function_gets_dependencies_too(threads: ThreadPoolExecutor) -> None:
    async def resource() -> AsyncIterator[int]:
        yield 5

    def handler(*, given: Annotated[int, Depends(resource)] = INJECTED) -> list[Any]:
        return [given, threading.current_thread() is threading.main_thread()]

    assert await run(threads, handler) == Finished(State.SUCCEEDED, "[5,false]")


async def test_the_time_limit_covers_the_dependencies_and_closes_them(threads: ThreadPoolExecutor) -> None:
    said: list[str] = []

    async def resource() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            said.append("closed")

    async def handler(*, given: Annotated[int, Depends(resource)] = INJECTED) -> None:
        await asyncio.Event().wait()

    assert failure(await run(threads, handler, timeout=0.01)) == "outbox.errors.AttemptTimeout"
    assert said == ["closed"]
