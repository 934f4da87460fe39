"""A PostgreSQL of a test's own, which the test may stop, kill and start again. It listens on a port of loopback."""

import os
import signal
import socket
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from api.postgres import Mode, Server


def version() -> int:
    """The major version to test on."""
    return int(os.environ.get("OUTBOX_TEST_POSTGRES", "18"))


class Cluster:
    """Started on entry, stopped on exit. The address stays the same across restarts.

    :param settings: of postgresql.conf; without any, PostgreSQL's own, so ``fsync`` is on.
    """

    def __init__(self, directory: Path, *, settings: Mapping[str, str] | None = None) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self._server = Server(directory, version=version(), port=port, settings=settings)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop("immediate")

    def url(self, database: str = "postgres") -> str:
        """The address of a database, as SQLAlchemy wants it."""
        return self._server.url(database)

    @property
    def log(self) -> str:
        """What the server has said so far."""
        return self._server.log.read_text(errors="replace")

    def start(self) -> None:
        """Start the server if it does not run; return when it takes connections."""
        self._server.start()

    def stop(self, mode: Mode = "fast") -> None:
        """Stop the server if it runs."""
        self._server.stop(mode)

    def restart(self, mode: Mode = "fast") -> None:
        """Stop and start."""
        self.stop(mode)
        self.start()

    def kill(self) -> None:
        """SIGKILL for all of its processes at once, as when memory is used up; return when they are gone."""
        first = psutil.Process(self._server.pid())
        first.send_signal(signal.SIGSTOP)  # so that it neither cleans up nor starts others
        processes = [*first.children(recursive=True), first]
        for process in processes:
            process.kill()
        psutil.wait_procs(processes, timeout=30)
