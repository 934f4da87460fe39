"""The command line: ``outbox worker``, ``check`` and ``migrate``. The only module that reads the environment."""

import asyncio
import gc
import importlib
import logging
import os
import signal
import sys
import threading
import time
from typing import Annotated, Any, NoReturn

import typer

from outbox import check as checking
from outbox import connection, events
from outbox import migrate as migration
from outbox.errors import OutboxError
from outbox.registry import Outbox
from outbox.settings import WorkerSettings
from outbox.worker import Worker

EXIT_FORCED = 75
"""Handlers were still running when the worker left; their jobs have been handed back (EX_TEMPFAIL)."""

EXIT_CONFIG = 78
"""Something must be mended by a person before a start can succeed (EX_CONFIG)."""

PROGRESS = 10_000
"""Jobs after which a long check says that it is still at it."""

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

DatabaseUrl = Annotated[
    str,
    typer.Option(
        "--database-url", envvar=["OUTBOX_DATABASE_URL", "DATABASE_URL"], help="postgresql://…", show_default=False
    ),
]


@app.callback()
def outbox() -> None:
    """A durable job queue in Postgres: jobs are written in the same transaction as business data."""


@app.command()
def worker(
    target: Annotated[str, typer.Argument(metavar="MODULE:NAME", help="the Outbox object, as in api.handlers:outbox")],
    database_url: DatabaseUrl,
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
    log_level: Annotated[str, typer.Option(envvar="OUTBOX_LOG_LEVEL", help="debug, info, warning, error")] = "info",
) -> None:
    """Run jobs until stopped. SIGTERM or Ctrl-C stops in good order, a second one at once.

    Exit status: 0 stopped in good order; 75 handlers were left behind, their jobs handed back; 78 misconfigured.
    """
    logging.basicConfig(level=log_level.upper(), format=events.FORMAT)
    try:
        settings = WorkerSettings(
            queues=dict(map(_slots, queue)),
            lease=lease,
            grace=grace,
            prefetch=prefetch,
            retention_days=retention_days,
            max_jobs_per_child=max_jobs_per_child,
            wake_up=wake_up,
        )
        code = 0 if _run(_serve(Worker(load(target), database_url, settings))) else EXIT_FORCED
    except OutboxError as exc:
        typer.secho(f"outbox: {exc}", err=True, fg=typer.colors.RED)
        code = EXIT_CONFIG
    except Exception:
        logging.getLogger("outbox").exception("worker_crashed")
        code = 1
    logging.shutdown()
    sys.stdout.flush()
    # Not sys.exit: that would wait for threads, and a handler left behind in one may never end.
    os._exit(code)


@app.command()
def migrate(database_url: DatabaseUrl) -> None:
    """Bring the database's outbox schema to this release's version, for hosts without Alembic."""
    try:
        before, after = asyncio.run(migration.migrate(database_url))
    except OutboxError as exc:
        _fail(str(exc))
    except (OSError, TimeoutError) as exc:
        _fail(f"the database cannot be reached: {exc}; check --database-url")
    typer.echo(f"outbox schema: version {after}" + ("" if before == after else f" (was {before})"))


@app.command()
def check(
    target: Annotated[str, typer.Argument(metavar="MODULE:NAME", help="the Outbox object, as in api.handlers:outbox")],
    database_url: DatabaseUrl,
) -> None:
    """Ask before a deploy whether this code would run the jobs that wait. Reads only, and calls no handler.

    Exit status: 0 it would run all of them; 1 some would fail, or would wait for other code; 78 misconfigured.
    """

    def progress(checked: int) -> None:
        if checked % PROGRESS == 0:
            typer.echo(f"{checked:,} jobs checked …", err=True)

    try:
        report = asyncio.run(checking.check(load(target), database_url, progress=progress))
    except OutboxError as exc:
        _fail(str(exc))
    except connection.FAILURES as exc:
        _fail(f"the database cannot be asked: {exc}; check --database-url, and migrate first")
    for line in checking.table(report):
        typer.echo(line)
    raise typer.Exit(1 if report.problems else 0)


def load(target: str) -> Outbox:
    """The Outbox that ``module:name`` names."""
    module, _, name = target.partition(":")
    if not module or not name:
        _fail(f"{target!r}: write MODULE:NAME, as in api.handlers:outbox")
    sys.path.insert(0, os.getcwd())
    try:
        found: Any = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as exc:
        _fail(f"{target!r}: {exc}; run the command in the folder that holds {module.partition('.')[0]!r}")
    except AttributeError as exc:
        _fail(f"{target!r}: {exc}")
    if not isinstance(found, Outbox):
        _fail(f"{target!r}: is a {type(found).__name__}, not an Outbox")
    return found


def main() -> None:
    """The entry point of the ``outbox`` command."""
    app()


async def _serve(worker: Worker) -> bool:
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


def _run(serving: Any) -> bool:
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
    all_ended: bool = runner.run(serving)
    return all_ended


def _slots(given: str) -> tuple[str, int]:
    name, separator, slots = given.rpartition(":")
    if not separator:
        return given, 10
    if not slots.isdigit():
        _fail(f"--queue {given!r}: write NAME:SLOTS, as in mail:10")
    return name, int(slots)


def _fail(message: str) -> NoReturn:
    typer.secho(f"outbox: {message}", err=True, fg=typer.colors.RED)
    raise typer.Exit(EXIT_CONFIG)
