"""A child process of a worker, started as ``python -m outbox.child``: runs one job at a time, and ends with its worker.

Handlers have the main thread to themselves, where signals can interrupt them. All else happens in the event loop of a
second thread: it hears the worker, opens the handlers' dependencies, and tells what handlers say of their jobs.
"""

import asyncio
import copy
import ctypes
import faulthandler
import importlib
import logging
import os
import resource
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager, suppress
from functools import partial
from queue import SimpleQueue
from typing import Any

from outbox import attempt, events, trace
from outbox.bounds import Bounds
from outbox.context import Claim
from outbox.errors import SoftTimeout
from outbox.message import MAX_LINE, ORDER, WORD, Order, Word
from outbox.task import Task

TELL = 0.2
"""Seconds between two looks at what the handler says, while it runs."""

PR_SET_PDEATHSIG = 1


class MainThread(Executor):
    """Runs calls in the thread that serves, one after the other."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Have it called."""
        future: Future[Any] = Future()
        self._calls.put((future, partial(call, *args, **kwargs)))
        return future

    def serve(self) -> None:
        """Make the calls until closed."""
        while (waiting := self._calls.get()) is not None:
            future, call = waiting
            try:
                future.set_result(call())
            except BaseException as exc:  # noqa: BLE001 - it is the caller's
                future.set_exception(exc)

    def close(self) -> None:
        """Serve no more."""
        self._calls.put(None)


class Child:
    """Takes orders from the pipe until it is closed."""

    def __init__(self, pipe: socket.socket, main_thread: MainThread) -> None:
        self._pipe = pipe
        self._main_thread = main_thread
        self._job: asyncio.Task[None] | None = None

    async def listen(self) -> None:
        """Start what the worker orders; return when it wants no more."""
        reader, self._writer = await asyncio.open_unix_connection(sock=self._pipe, limit=MAX_LINE)
        with suppress(ConnectionError):  # the worker has died with our word unread
            while line := await reader.readline():
                self._job = asyncio.create_task(self._perform(ORDER.read(line)))
        if self._job is not None and not self._job.done():
            # Nobody is left to take its outcome: end, with all that the handler has started.
            os.killpg(os.getpid(), signal.SIGKILL)
        self._main_thread.close()

    async def _perform(self, order: Order) -> None:
        claim = order.claim
        try:
            task = await asyncio.wrap_future(self._main_thread.submit(_find, order))
            self._say(Word())
            trace.resume(claim.headers)
            telling = asyncio.create_task(self._tell(claim))
            outcome = await attempt.run(task, claim, self._main_thread)
            telling.cancel()
            # What it printed must not be lost should the worker end this process now.
            sys.stdout.flush()
            sys.stderr.flush()
            self._say(Word(claim.progress, claim.kept, outcome))
        except BaseException:  # noqa: BLE001 - the worker judges a job by its child's end
            traceback.print_exc()
            os._exit(1)

    async def _tell(self, claim: Claim) -> None:
        told: tuple[str | None, str | None] = (None, None)
        while True:
            await asyncio.sleep(TELL)
            if (news := (claim.progress, claim.kept)) != told:
                self._say(Word(*news))
                told = news

    def _say(self, word: Word) -> None:
        self._writer.write(WORD.write(word))


def _find(order: Order) -> Task[..., Any]:
    task: Task[..., Any] = copy.copy(getattr(importlib.import_module(order.module), order.name))
    task.handler = partial(_within, task.bounds, task.handler)
    return task


def _within(bounds: Bounds, handler: Callable[..., Any], /, **arguments: Any) -> Any:
    with _memory(bounds.memory), _alarm(bounds.soft_timeout):
        return handler(**arguments)


@contextmanager
def _memory(limit: int | None) -> Iterator[None]:
    if limit is None:
        yield
        return
    # Not RLIMIT_AS: that counts what libraries and threads only reserve, and large ones reserve gigabytes.
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


@contextmanager
def _alarm(seconds: float | None) -> Iterator[None]:
    if seconds is None:
        yield
        return

    def ring(_number: int, _frame: object) -> None:
        raise SoftTimeout(f"ran longer than its soft limit of {seconds:g} s")

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _die_with(worker: int) -> None:
    if sys.platform == "linux":
        # The pipe tells as well, but not while a handler's C code holds the interpreter.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != worker:  # it died before we asked
        os._exit(1)


def main() -> None:
    """What the worker starts: arguments are the pipe, the worker's process, its log level and its module path."""
    descriptor, worker, level, *path = sys.argv[1:]
    _die_with(int(worker))
    # Those who stop a worker often signal all its processes: the worker decides what follows. A function, not
    # SIG_IGN, which processes that a handler starts would inherit.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    sys.path[:] = path
    faulthandler.enable()
    logging.basicConfig(level=int(level), format=events.FORMAT)
    pipe = socket.socket(fileno=int(descriptor))
    pipe.set_inheritable(False)
    main_thread = MainThread()
    child = Child(pipe, main_thread)
    threading.Thread(target=lambda: asyncio.run(child.listen()), name="outbox-pipe", daemon=True).start()
    main_thread.serve()


if __name__ == "__main__":
    main()
