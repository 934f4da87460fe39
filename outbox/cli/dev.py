"""``outbox dev``: a worker for who writes the handlers. It restarts when a file changes, and shows every attempt."""

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from outbox import connection
from outbox.cli.console import EXIT_CONFIG, EXIT_FORCED, EXIT_REFUSED, DatabaseUrl, err, fail, say
from outbox.cli.lines import DevLines
from outbox.cli.reloader import PARENT, Reloader
from outbox.cli.target import Target, load, named
from outbox.cli.worker import LogLevel, leave, run, serve, slots
from outbox.errors import DeclarationError, OutboxError, SchemaMismatch
from outbox.registry import Outbox
from outbox.settings import WorkerSettings
from outbox.worker import Worker

LEASE = 10.0
"""Seconds. Shorter than in production: a worker that was killed is soon forgotten."""


def dev(
    database_url: DatabaseUrl,
    target: Target = None,
    queue: Annotated[
        list[str] | None,
        typer.Option("--queue", "-q", metavar="NAME:SLOTS", help="one more queue, or other slots; repeat for several"),
    ] = None,
    slots_each: Annotated[int, typer.Option("--slots", min=1, help="jobs of each queue that run at once")] = 5,
    grace: Annotated[float, typer.Option("--grace", min=0, help="seconds that running jobs get at a restart")] = 3.0,
    reload: Annotated[
        bool, typer.Option("--reload/--no-reload", help="start anew when a Python file changes; needs outbox[dev]")
    ] = True,
    watch: Annotated[
        list[Path] | None,
        typer.Option("--watch", exists=True, help="where files are watched; this folder unless given", metavar="PATH"),
    ] = None,
    log_level: LogLevel = "info",
    as_json: Annotated[bool, typer.Option("--json", help="write lines of JSON")] = False,
) -> None:
    """Run jobs while you write their handlers. Restarts when a file changes, and shows every attempt.

    Exit status: 0 stopped; 78 the address or the schema must be mended first.
    """
    more = dict(map(slots, queue or ()))
    lines = DevLines(as_json=as_json)
    if not reload:
        _work(target, database_url, lines, more, slots_each, grace, log_level)
    target = named(target)
    try:
        connection.dsn(database_url)
    except DeclarationError as exc:
        fail(str(exc))
    options = [f"--queue={name}:{count}" for name, count in more.items()]
    options += [f"--slots={slots_each}", f"--grace={grace}", f"--log-level={log_level}", *["--json"] * as_json]
    command = [sys.executable, "-m", "outbox", "dev", target, "--no-reload", *options]
    # Not as an argument, which everybody on this machine can read.
    environment = {**os.environ, "OUTBOX_DATABASE_URL": database_url}
    raise typer.Exit(Reloader(command, watch or [Path.cwd()], grace, lines.note).run(environment))


def queues_of(outbox: Outbox, count: int) -> dict[str, int]:
    """All queues that the declarations name, with so many slots each."""
    names = {task.defaults.queue for task in outbox} | {each.job.options.queue for each in outbox.schedules}
    names |= {rule.name for rule in outbox.limits if rule.scope == "queue"}
    return dict.fromkeys(sorted(names), count)


def _work(
    target: str | None,
    database_url: str,
    lines: DevLines,
    more: Mapping[str, int],
    count: int,
    grace: float,
    log_level: str,
) -> None:
    _leave_with_parent()
    logging.basicConfig(level=log_level.upper(), handlers=[lines])
    try:
        outbox = load(target)
    except typer.Exit:
        leave(EXIT_REFUSED)  # it has been said why; a change may mend it
    try:
        queues = {**queues_of(outbox, count), **more}
        settings = WorkerSettings(queues=queues, grace=grace, lease=LEASE)
        code = 0 if run(serve(Worker(outbox, database_url, settings, observer=lines))) else EXIT_FORCED
    except OutboxError as exc:
        say(f"outbox: {exc}", style="red", to=err)
        code = EXIT_CONFIG if isinstance(exc, SchemaMismatch) else EXIT_REFUSED
    except Exception:
        logging.getLogger("outbox").exception("worker_crashed")
        code = EXIT_REFUSED
    leave(code)


def _leave_with_parent() -> None:
    """Stop in good order once the process is gone that restarts this one, however it ended."""
    parent = os.environ.pop(PARENT, None)
    if parent is None:
        return

    def look() -> None:
        while os.getppid() == int(parent):
            time.sleep(1)
        with contextlib.suppress(OSError):
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=look, name="outbox-parent", daemon=True).start()
