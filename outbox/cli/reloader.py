"""A process that is started anew whenever a Python file changes, and that may fail meanwhile."""

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from outbox.cli.console import EXIT_CONFIG, fail

LOOK = 200
"""Milliseconds between two looks at whether the process is still there."""

PATIENCE = 15.0
"""Seconds after the grace in which the process must have left; a worker needs ten at most."""

PARENT = "OUTBOX_DEV_PARENT"
"""Tells the process who started it, so that it does not outlive them."""

Told = Callable[..., Any]


class Reloader:
    """Runs a command, and starts it anew after each change.

    :param command: ends in good order on SIGTERM, at once on a second one. If it ends by itself, the next change starts
        it again, unless its status is ``EXIT_CONFIG``: that cannot be mended in a file.
    :param folders: where files are watched.
    :param grace: seconds that it gets to end.
    :param tell: says what happens: a name, a sign with its colour, and words.
    """

    def __init__(self, command: Sequence[str], folders: Sequence[Path], grace: float, tell: Told) -> None:
        self._command = command
        self._folders = folders
        self._grace = grace
        self._tell = tell
        self._stop = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, environment: dict[str, str]) -> int:
        """Go on until a signal comes; the exit status."""
        try:
            from watchfiles import PythonFilter, watch
        except ImportError:
            fail('nothing here can watch files: pip install "outbox[dev]", or say --no-reload')
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._asked_to_stop)
        # A file that is saved twice within a second may keep its size and its time, and then an old .pyc passes for it.
        environment = {**environment, PARENT: str(os.getpid()), "PYTHONDONTWRITEBYTECODE": "1"}
        status = None
        try:
            # The first look only says that from now on no change is missed.
            for changes in watch(
                *self._folders,
                watch_filter=PythonFilter(),
                stop_event=self._stop,
                rust_timeout=LOOK,
                yield_on_timeout=True,
                raise_interrupt=False,
            ):
                if changes:
                    names = sorted({_shown(name) for _, name in changes})
                    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                    self._tell("changed", ("↻", "cyan"), f"{', '.join(names[:3])}{more} changed", files=names)
                    self._end()
                if changes or self._process is None:
                    self._start(environment)
                    status = None
                elif status is None and (status := self._process.poll()) is not None:
                    if status == EXIT_CONFIG:
                        return EXIT_CONFIG
                    self._tell("waiting", ("…", "yellow"), "the worker has ended; the next change starts it again")
        finally:
            self._end()
        return 0

    def _start(self, environment: dict[str, str]) -> None:
        # In a group of its own: a Ctrl-C is for us, who then stop it in good order, once.
        if self._stop.is_set():
            return
        self._process = subprocess.Popen(self._command, env=environment, stdin=subprocess.DEVNULL, process_group=0)
        if self._stop.is_set():  # asked in between, when there was none to tell
            self._process.terminate()

    def _end(self) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        if not self._stop.is_set():  # otherwise it knows
            process.terminate()
        try:
            process.wait(self._grace + PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _asked_to_stop(self, _number: int, _frame: object) -> None:
        self._stop.set()
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()


def _shown(name: str) -> str:
    path = Path(name)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else name
