"""``outbox worker``: run jobs until stopped."""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Coroutine
from typing import Annotated, Any, Literal, NoReturn

import typer

from outbox import events
from outbox.cli.console import EXIT_CONFIG, EXIT_FORCED, EXIT_USAGE, DatabaseUrl, err, fail, say
from outbox.cli.lines import JsonLines
from outbox.cli.target import Target, load
from outbox.errors import OutboxError
from outbox.settings import WorkerSettings
from outbox.worker import Worker

LogLevel = Annotated[
    Literal["debug", "info", "warning", "error"], typer.Option(envvar="OUTBOX_LOG_LEVEL", help="from which level on")
]


def worker(
    database_url: DatabaseUrl,
    target: Target = None,
    queue: Annotated[
        list[str],
        typer.Option("--queue", "-q", metavar="NAME:SLOTS", envvar="OUTBOX_QUEUES", help="repeat for several"),
    ] = ["default:10"],  # noqa: B006 - typer's way to say it
    lease: Annotated[
        float, typer.Option(envvar="OUTBOX_LEASE", help="seconds until a dead worker's jobs run elsewhere")
    ] = 30.0,
    grace: Annotated[float, typer.Option(envvar="OUTBOX_GRACE", help="seconds that running jobs get at a stop")] = 20.0,
    prefetch: Annotated[
        int, typer.Option(envvar="OUTBOX_PREFETCH", help="claims held ready per queue, at most")
    ] = 1000,
    retention_days: Annotated[
        int, typer.Option(envvar="OUTBOX_RETENTION_DAYS", help="days that finished jobs are kept")
    ] = 14,
    max_jobs_per_child: Annotated[
        int, typer.Option(envvar="OUTBOX_MAX_JOBS_PER_CHILD", help="jobs a child process runs before it is replaced")
    ] = 100,
    wake_up: Annotated[
        bool, typer.Option(envvar="OUTBOX_WAKE_UP", help="listen for hints; not through a pooler")
    ] = True,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            envvar="OUTBOX_METRICS_PORT", min=1, max=65_535, help="where /metrics, /livez and /readyz are; off without"
        ),
    ] = None,
    metrics_host: Annotated[
        str, typer.Option(envvar="OUTBOX_METRICS_HOST", help="the address that they are at, open to all who reach it")
    ] = "127.0.0.1",
    log_level: LogLevel = "info",
    as_json: Annotated[bool, typer.Option("--json", help="write the log as lines of JSON, to stdout")] = False,
) -> None:
    """Run jobs until stopped. SIGTERM or Ctrl-C stops in good order, a second one at once.

    Exit status: 0 stopped in good order; 75 handlers were left behind, their jobs handed back; 78 misconfigured.
    """
    log(log_level, as_json=as_json)
    queues, outbox = dict(map(slots, queue)), load(target)
    try:
        settings = WorkerSettings(
            queues=queues,
            lease=lease,
            grace=grace,
            prefetch=prefetch,
            retention_days=retention_days,
            max_jobs_per_child=max_jobs_per_child,
            wake_up=wake_up,
        )
        made = Worker(outbox, database_url, settings)
        if metrics_port is not None:
            from outbox import probe  # here, for it needs an extra

            probe.start(made, metrics_host, metrics_port)
        code = 0 if run(serve(made)) else EXIT_FORCED
    except OutboxError as exc:
        say(f"outbox: {exc}", style="red", to=err)
        code = EXIT_CONFIG
    except Exception:
        logging.getLogger("outbox").exception("worker_crashed")
        code = 1
    leave(code)


def log(level: str, *, as_json: bool) -> None:
    """Have everything logged, as text to stderr or as JSON to stdout."""
    handler: logging.Handler = logging.StreamHandler(sys.stdout if as_json else sys.stderr)
    handler.setFormatter(JsonLines() if as_json else logging.Formatter(events.FORMAT))
    logging.basicConfig(level=level.upper(), handlers=[handler])


def leave(code: int) -> NoReturn:
    """End the process."""
    logging.shutdown()
    with contextlib.suppress(OSError):  # nobody reads it any more
        sys.stdout.flush()
    # Not sys.exit: that would wait for threads, and a handler left behind in one may never end.
    os._exit(code)


async def serve(worker: Worker) -> bool:
    """Run the worker; SIGTERM and SIGINT stop it, asked twice at once. Whether all handlers ended."""
    loop = asyncio.get_running_loop()

    # Not loop.add_signal_handler: a handler that blocks the event loop must not keep the process from leaving.
    def stop(_number: int, _frame: object) -> None:
        loop.call_soon_threadsafe(worker.stop)
        if watchdog.is_alive():
            hurry.set()
        else:
            watchdog.start()

    hurry = threading.Event()
    watchdog = threading.Thread(target=_leave_after, args=(worker, hurry), name="outbox-watchdog", daemon=True)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    return await worker.run()


def _leave_after(worker: Worker, hurry: threading.Event) -> None:
    # A second more than the worker itself needs: it leaves by itself unless its event loop is blocked.
    if hurry.wait(worker.grace + worker.farewell + 1):
        time.sleep(worker.farewell + 1)
    worker.abandon()
    os._exit(EXIT_FORCED)


def run(serving: Coroutine[Any, Any, bool]) -> bool:
    """Run it on the fastest event loop that there is."""
    # What is there by now stays; of what comes, claims live for moments and are in no circles. With Python's own
    # settings a busy worker spends a tenth of its time on looking through them.
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    try:
        import uvloop
    except ImportError:
        runner = asyncio.Runner()
    else:
        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    # Not closed: closing would wait for handlers that swallow their cancellation.
    return runner.run(serving)


def slots(given: str) -> tuple[str, int]:
    """A queue and its slots, from ``NAME:SLOTS``; ten unless given."""
    name, separator, number = given.rpartition(":")
    if not separator:
        return given, 10
    if not number.isdecimal():
        fail(f"--queue {given!r}: write NAME:SLOTS, as in mail:10", EXIT_USAGE)
    return name, int(number)
