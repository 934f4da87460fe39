"""The child processes of a worker, in which handlers run that must be killed when they will not end.

Each is a fresh interpreter, never a fork of the worker: it shares no connection, no lock and no thread with it. It
runs one job at a time and is kept for the next. A timeout, a cancel, a lost lease and the end of a stopping worker's
grace kill it together with whatever the handler has started, and so does the worker's own death.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from outbox import attempt
from outbox.context import Claim
from outbox.errors import AttemptTimeout, ChildDied, DeclarationError
from outbox.message import MAX_LINE, ORDER, WORD, Order, Word
from outbox.outcome import Outcome
from outbox.task import Task

START = 60.0
"""Seconds that a child has to import the handler's module; the attempt's own limit starts after that."""

FAREWELL = 2.0
"""Seconds that a child which is not needed any more has to end by itself."""


class Children:
    """Runs isolated tasks, in as many processes as run at once.

    :param tasks: all tasks of the worker.
    :param max_jobs: how many jobs a child runs before a fresh one takes its place.
    :raises DeclarationError: if an isolated task cannot be found by a process that imports its module.
    """

    def __init__(self, tasks: Iterable[Task[..., Any]], max_jobs: int) -> None:
        self._addresses = {task.name: address(task) for task in tasks if task.bounds.isolation}
        self._max_jobs = max_jobs
        self._all: set[Child] = set()
        self._idle: list[Child] = []
        self._leaving: set[asyncio.Task[None]] = set()

    async def run(self, task: Task[..., Any], claim: Claim) -> Outcome:
        """As ``attempt.run``, in a child. When this returns nothing of the attempt runs on."""
        if claim.stop is not None:
            return attempt.ended_by(task, claim, asyncio.CancelledError())
        child = None
        limit = asyncio.timeout(task.timeout)
        try:
            child = await self._started(Order(*self._addresses[task.name], claim))
            async with limit:
                outcome = await child.outcome(claim)
        except BaseException as exc:  # noqa: BLE001 - whatever it is, the child must be gone before the job ends
            if child is not None:
                await self._kill(child)
            if not limit.expired():
                return attempt.ended_by(task, claim, exc)
            return attempt.ended_by(task, claim, AttemptTimeout(f"ran longer than {task.timeout:g} s"))
        self._keep(child, outcome)
        return outcome

    async def end(self) -> None:
        """Return once all of them are gone: those that still run a job are killed, the others may end by themselves."""
        while self._idle:
            self._retire(self._idle.pop())
        for child in list(self._all):
            await self._kill(child)
        await asyncio.gather(*self._leaving)

    async def _started(self, order: Order) -> "Child":
        while True:
            is_fresh = not self._idle
            child = await Child.start() if is_fresh else self._idle.pop()
            self._all.add(child)
            try:
                await child.begin(order)
            except BaseException as exc:
                await self._kill(child)
                if isinstance(exc, ChildDied) and not is_fresh:
                    continue  # it had died before, unused
                raise
            return child

    async def _kill(self, child: "Child") -> None:
        await child.kill()
        self._all.discard(child)

    def _keep(self, child: "Child", outcome: Outcome) -> None:
        # One that has run out of memory has little of it left.
        spoilt = outcome.error is not None and outcome.error.type == MemoryError.__name__
        if spoilt or child.jobs >= self._max_jobs:
            self._retire(child)
        else:
            self._idle.append(child)

    def _retire(self, child: "Child") -> None:
        self._all.discard(child)
        leaving = asyncio.create_task(child.retire())
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)


class Child:
    """One child process, and the pipe to it.

    :ivar jobs: how many it has run.
    """

    def __init__(self, process: Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.jobs = 0
        self._process = process
        self._reader = reader
        self._writer = writer
        self._gone = asyncio.create_task(self._reap())

    @classmethod
    async def start(cls) -> "Child":
        """Start one. In a session of its own: a Ctrl-C in the terminal is the worker's to judge."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                level = logging.getLogger().getEffectiveLevel()
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "outbox.child", str(theirs.fileno()), str(os.getpid()), str(level)),
                    *sys.path,
                    stdin=DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                )
            return cls(process, *await asyncio.open_unix_connection(sock=ours, limit=MAX_LINE))
        except BaseException:
            ours.close()  # which ends the process, if it is there
            raise

    async def begin(self, order: Order) -> None:
        """Give it a job, and wait until its handler is about to start.

        :raises ChildDied: if it does not get so far.
        """
        try:
            async with asyncio.timeout(START):
                self._writer.write(ORDER.write(order))
                await self._hear()
        except TimeoutError:
            raise ChildDied(f"the child process had not imported {order.module!r} within {START:g} s") from None

    async def outcome(self, claim: Claim) -> Outcome:
        """Hear it until the job has ended; what it says meanwhile is in the claim then.

        :raises ChildDied: if it ends first.
        """
        while True:
            word = await self._hear()
            claim.progress, claim.kept = word.progress, word.kept
            if word.outcome is not None:
                self.jobs += 1
                return word.outcome

    async def kill(self) -> None:
        """Kill it, with what its handlers have started, and wait until it is gone."""
        self._signal_group()
        while not self._gone.done():
            with suppress(asyncio.CancelledError):  # whoever cancels has to wait for it, too
                await asyncio.shield(self._gone)

    async def retire(self) -> None:
        """Let it end by itself, or kill it."""
        self._writer.close()
        await asyncio.wait({self._gone}, timeout=FAREWELL)
        await self.kill()

    async def _hear(self) -> Word:
        line = b""
        with suppress(ConnectionError):  # it has died with our order unread
            line = await self._reader.readline()
        if line.endswith(b"\n"):
            return WORD.read(line)
        await self.retire()
        raise ChildDied(self._cause())

    async def _reap(self) -> None:
        await self._process.wait()
        # The pipe may be open still, in what the handler has forked: nobody is to wait for that.
        self._writer.transport.abort()

    def _signal_group(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _cause(self) -> str:
        status = self._process.returncode or 0
        if status >= 0:
            return f"the child process ended with exit status {status}"
        name = signal.Signals(-status).name
        hint = ", as by a system that is short of memory" if name == "SIGKILL" else ""
        return f"the child process was killed by {name}{hint}"


def address(task: Task[..., Any]) -> tuple[str, str]:
    """The module of the task's handler and the task's own name in it, where a fresh process finds it again.

    :raises DeclarationError: if it would not.
    """
    module = getattr(task.handler, "__module__", "")
    if module == "__main__":
        raise DeclarationError(
            f"task {task.name!r}: isolation='process' imports the module of its handler, and this one is the program "
            "itself; move the task into a module of its own"
        )
    for name, value in getattr(sys.modules.get(module), "__dict__", {}).items():
        if value is task:
            return module, name
    raise DeclarationError(
        f"task {task.name!r}: isolation='process' finds it by importing {module!r}, where no name stands for it; "
        "declare it there, at module level"
    )
