"""Tasks for the crash tests. Handlers say in a file when they start and end, and wait where a test wants them to.

The file is opened with O_APPEND and each line is one write: it outlives the process, and needs no database.
"""

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from outbox import INJECTED, JobContext, Outbox, Retry
from outbox.batch import BatchSummary

outbox = Outbox()

LOG = "CRASH_LOG"
GATES = "CRASH_GATES"
WORKER = "CRASH_WORKER"

THRICE = Retry.fixed(0.05, max_attempts=3)
A_WHILE = 0.01

Result = dict[str, Any]


@cache
def _log() -> int:
    return os.open(os.environ[LOG], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def _say(what: str, ctx: JobContext) -> None:
    line = {"what": what, "job": str(ctx.id), "fence": ctx.fence, "worker": os.environ[WORKER]}
    os.write(_log(), (json.dumps(line) + "\n").encode())


@contextmanager
def _told(ctx: JobContext) -> Iterator[Result]:
    _say("start", ctx)
    try:
        yield {"fence": ctx.fence, "worker": os.environ[WORKER]}
    except BaseException:
        _say("broken off", ctx)
        raise
    _say("end", ctx)


def _is_open(ctx: JobContext) -> bool:
    gates = Path(os.environ[GATES])
    return (gates / str(ctx.id)).exists() or (gates / f"{ctx.id}.{ctx.fence}").exists()


@outbox.task(retry=THRICE)
async def tick(seconds: float, *, ctx: JobContext = INJECTED) -> Result:
    """Take a moment."""
    with _told(ctx) as result:
        await asyncio.sleep(seconds)
    return result


@outbox.task(retry=THRICE)
def tick_in_thread(seconds: float, *, ctx: JobContext = INJECTED) -> Result:
    """Take a moment, in a thread, where a cancellation does not reach."""
    with _told(ctx) as result:
        time.sleep(seconds)
    return result


@outbox.task(retry=THRICE)
async def gated(*, ctx: JobContext = INJECTED) -> Result:
    """Wait until the test opens the gate."""
    with _told(ctx) as result:
        while not _is_open(ctx):  # noqa: ASYNC110 - another process opens it
            await asyncio.sleep(A_WHILE)
    return result


@outbox.task(retry=THRICE)
def gated_in_thread(*, ctx: JobContext = INJECTED) -> Result:
    """The same in a thread."""
    with _told(ctx) as result:
        while not _is_open(ctx):
            time.sleep(A_WHILE)
    return result


@outbox.task(retry=THRICE)
async def gated_and_stubborn(*, ctx: JobContext = INJECTED) -> Result:
    """The same, taking no notice of being cancelled."""
    with _told(ctx) as result:
        while not _is_open(ctx):
            try:  # noqa: SIM105 - as users write it
                await asyncio.sleep(A_WHILE)
            except asyncio.CancelledError:
                pass
    return result


@outbox.task(retry=THRICE)
async def gated_and_blocking(*, ctx: JobContext = INJECTED) -> Result:
    """The same, holding the event loop all the while."""
    with _told(ctx) as result:
        while not _is_open(ctx):
            time.sleep(A_WHILE)  # noqa: ASYNC251 - that is the mistake under test
    return result


@outbox.task(retry=THRICE)
async def blocking(seconds: float, *, ctx: JobContext = INJECTED) -> Result:
    """Hold the event loop for some time."""
    with _told(ctx) as result:
        time.sleep(seconds)  # noqa: ASYNC251 - that is the mistake under test
    return result


@outbox.task(retry=THRICE)
def later_in_thread(*, ctx: JobContext = INJECTED) -> Result:
    """Wait for the gate; the second claim of the job then asks for another one much later."""
    with _told(ctx) as result:
        while not _is_open(ctx):
            time.sleep(A_WHILE)
        if ctx.fence == 2:
            raise Retry.after(3600)
    return result


@outbox.task(retry=THRICE)
async def called_back(batch: BatchSummary, *, ctx: JobContext = INJECTED) -> Result:
    """What a batch calls back."""
    with _told(ctx) as result:
        return result | {"succeeded": batch.succeeded}


@outbox.task(retry=THRICE)
async def poison(*, ctx: JobContext = INJECTED) -> Result:
    """Take the whole process down."""
    with _told(ctx) as result:
        os.kill(os.getpid(), signal.SIGKILL)
    return result
