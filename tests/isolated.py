"""Tasks for child processes, which find them by importing this module."""

import asyncio
import atexit
import ctypes
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

from opentelemetry.trace import format_trace_id, get_current_span
from pydantic import BaseModel, SecretStr

from outbox import INJECTED, Cancel, Depends, JobContext, Outbox, Retry, Snooze
from outbox.errors import SoftTimeout
from outbox.secret import Keyring

outbox = Outbox()

RETRY = Retry.fixed(5, max_attempts=3)
MEMORY = 300 * 2**20


class Receipt(BaseModel):
    number: int
    of: UUID


class Odd(BaseException):
    pass


async def resource() -> AsyncIterator[str]:
    """A dependency that needs a running event loop."""
    await asyncio.sleep(0)
    yield f"of thread {threading.current_thread().name}"


@outbox.task(isolation="process", retry=RETRY)
def who() -> int:
    return os.getpid()


@outbox.task(isolation="process", retry=RETRY)
def where() -> list[Any]:
    is_main = threading.current_thread() is threading.main_thread()
    return [is_main, os.getsid(0) == os.getpid(), os.getppid(), sys.stdin.read()]


@outbox.task(isolation="process", retry=RETRY)
def receipt(number: int, of: UUID) -> Receipt:
    return Receipt(number=number, of=of)


@outbox.task(isolation="process", retry=RETRY)
def large(size: int) -> str:
    return "\0é\n" * size


@outbox.task(isolation="process", retry=RETRY)
def with_dependency(*, given: Annotated[str, Depends(resource)] = INJECTED) -> list[str]:
    return [given, threading.current_thread().name]


@outbox.task(isolation="process", retry=RETRY)
def runs_a_loop() -> str:
    return asyncio.run(asyncio.sleep(0, "ran"))


RAISED: dict[str, BaseException] = {
    "ValueError": ValueError("no such luck"),
    "StopIteration": StopIteration(),
    "CancelledError": asyncio.CancelledError(),
    "SystemExit": SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt(),
    "GeneratorExit": GeneratorExit(),
    "Odd": Odd(),
    "BaseExceptionGroup": BaseExceptionGroup("g", [SystemExit()]),
    "Cancel": Cancel("no"),
    "RetryAfter": Retry.after(9),
}


@outbox.task(isolation="process", retry=RETRY)
def fails(how: str) -> Any:
    raise RAISED[how]


@outbox.task(isolation="process", retry=RETRY)
def snoozes() -> Snooze:
    return Snooze(9)


@outbox.task(isolation="process", retry=RETRY)
def dies(how: str) -> None:
    match how:
        case "exit":
            os._exit(3)
        case "segfault":
            ctypes.string_at(0)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)


@outbox.task(isolation="process", retry=RETRY)
def leaves_a_fork_behind(told: str) -> None:
    if os.fork() == 0:
        os.setsid()  # out of the reach of who kills the child's group
        Path(told).write_text(str(os.getpid()))
        time.sleep(3600)
    while not (Path(told).exists() and Path(told).read_text()):
        time.sleep(0.01)
    os._exit(3)


@outbox.task(isolation="process", retry=RETRY)
def leaves_a_process_behind(told: str) -> None:
    started = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    Path(told).write_text(str(started.pid))
    os._exit(3)


@outbox.task(isolation="process", retry=RETRY)
def says(*, ctx: JobContext = INJECTED) -> list[Any]:
    before = ctx.checkpoint
    ctx.progress(1, 4, "quarter")
    ctx.keep({"at": 1})
    return [str(ctx.id), ctx.task, ctx.attempt, ctx.max_attempts, ctx.fence, before, ctx.checkpoint, ctx.cancelled]


@outbox.task(isolation="process", retry=RETRY)
def waits(told: str, *, ctx: JobContext = INJECTED) -> None:
    """Say that it has begun, and never end."""
    ctx.progress(1)
    ctx.keep({"at": 7})
    Path(told).write_text(str(os.getpid()))
    while True:
        time.sleep(3600)


def _spin() -> None:
    while True:
        pass


def _sleep_in_c() -> None:
    ctypes.PyDLL(None).sleep(3600)  # with the interpreter's lock held: no thread and no signal handler gets a turn


def _ignore_signals() -> None:
    for number in set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}:
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
            continue  # the C library's own
    while True:
        try:
            time.sleep(3600)
        except BaseException:  # noqa: BLE001 - that is the point
            continue


def _have_children() -> None:
    subprocess.run([sys.executable, "-c", "import time; time.sleep(3600)"], check=True)


def _fork() -> None:
    multiprocessing.get_context("fork").Process(target=_spin).start()
    _spin()


STUBBORN = {
    "spins": _spin,
    "sleeps-in-c": _sleep_in_c,
    "ignores-signals": _ignore_signals,
    "has-children": _have_children,
    "forks": _fork,
}


def _be_stubborn(how: str, told: str) -> None:
    Path(told).write_text(str(os.getpid()))
    STUBBORN[how]()


@outbox.task(isolation="process", retry=RETRY, timeout=1)
def stubborn_for_a_moment(how: str, told: str) -> None:
    _be_stubborn(how, told)


@outbox.task(isolation="process", retry=RETRY)
def stubborn(how: str, told: str) -> None:
    _be_stubborn(how, told)


@outbox.task(isolation="process", retry=RETRY, timeout=3600, soft_timeout=0.1)
def soft(how: str) -> str:
    try:
        if how == "spins":
            _spin()
        while True:
            time.sleep(3600)
    except SoftTimeout:
        if how == "raises":
            raise
        return "cleaned up"


@outbox.task(isolation="process", retry=RETRY, timeout=3600, soft_timeout=3000)
def not_soft() -> float:
    return signal.getitimer(signal.ITIMER_REAL)[0]


@outbox.task(isolation="process", retry=RETRY, memory_limit=MEMORY)
def takes(size: int) -> int:
    return len(bytearray(size))


@outbox.task(isolation="process", retry=RETRY)
def takes_without_limit(size: int) -> list[int]:
    return [len(bytearray(size)), os.getpid()]


@outbox.task(isolation="process", retry=RETRY)
def prints(text: str) -> None:
    print(text)  # noqa: T201 - seen in the worker's own output
    logging.getLogger(__name__).warning("logged")


@outbox.task(isolation="process", retry=RETRY)
def alarm() -> float:
    return signal.getitimer(signal.ITIMER_REAL)[0]


@outbox.task(isolation="process", retry=RETRY)
def gated(told: str, go: str) -> str:
    """Say that it has begun, and wait until the test lets it end."""
    Path(told).write_text(str(os.getpid()))
    while not Path(go).exists():
        time.sleep(0.01)
    return "went"


@outbox.task(isolation="process", retry=RETRY)
def says_farewell(told: str) -> None:
    atexit.register(Path(told).write_text, "farewell")


def _hidden() -> None: ...


another_name = outbox.task(name="renamed", isolation="process")(_hidden)


sealed = Outbox(secrets=Keyring({"test": bytes(32)}, current="test"))


@sealed.task(isolation="process", retry=RETRY, version=2)
def uses_secret(key: SecretStr) -> SecretStr:
    return SecretStr(key.get_secret_value()[::-1])


@uses_secret.upcast(1)
def _rename(arguments: dict[str, Any]) -> dict[str, Any]:
    return {"key": arguments["password"]}


@sealed.task(isolation="process", retry=1)
def fails_with_secret(key: SecretStr) -> None:
    raise KeyError(key.get_secret_value())


@outbox.task(isolation="process", retry=RETRY)
def trace() -> str:
    return format_trace_id(get_current_span().get_span_context().trace_id)
