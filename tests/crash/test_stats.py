"""``outbox stats --watch`` on a terminal, while its database comes and goes."""

import asyncio
import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from api.postgres import Server
from outbox.migrate import migrate
from tests.cluster import version
from tests.factories import plant
from tests.waiting import until

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.crash

ALTERNATE, BACK, CURSOR = "\x1b[?1049h", "\x1b[?1049l", "\x1b[?25h"
"""What opens a screen of its own, what leaves it, and what shows the cursor again."""

CONTROLLED = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
"""A program whose terminal is the one that its Ctrl-C comes from."""


class Terminal:
    """A program in a terminal of 30 lines.

    :ivar printed: all that it has written so far, as it came.
    """

    def __init__(self, columns: int, *arguments: str, **environment: str) -> None:
        self.printed = ""
        self._end, slave = pty.openpty()
        fcntl.ioctl(self._end, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
        self._process = subprocess.Popen(
            [sys.executable, "-c", CONTROLLED, "-m", "outbox", *arguments],
            cwd=ROOT,
            env={**os.environ, "TERM": "xterm", **environment},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        os.set_blocking(self._end, False)

    def read(self) -> str:
        """All that it has written so far."""
        try:
            while more := os.read(self._end, 65_536):
                self.printed += more.decode(errors="replace")
        except OSError:  # nothing more now, or ever
            pass
        return self.printed

    def press(self, key: bytes) -> None:
        """Press a key."""
        os.write(self._end, key)

    def status(self) -> int | None:
        """Its exit status, once it is gone."""
        self.read()  # it may wait for somebody who does
        return self._process.poll()

    def ask_to_stop(self) -> None:
        """Send it SIGTERM."""
        self._process.terminate()

    def close(self) -> None:
        """Kill it if it is still there."""
        self._process.kill()
        self._process.wait()
        os.close(self._end)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server of the test's own."""
    server = Server(tmp_path / "postgres", version=version(), settings={"fsync": "off"})
    server.start()
    yield server
    server.stop("immediate")


@pytest.fixture
def engine(server: Server) -> AsyncEngine:
    return create_async_engine(server.url())


@pytest.mark.parametrize("columns", [60, 140])
async def test_it_waits_for_a_database_that_is_away_and_gives_the_terminal_back(
    server: Server, engine: AsyncEngine, columns: int
) -> None:
    await migrate(server.url())
    await plant(engine, queue="mail")
    await engine.dispose()
    terminal = Terminal(columns, "stats", "--watch", "--every", "0.5", DATABASE_URL=server.url())
    try:
        await until(lambda: "mail" in terminal.read())
        assert ALTERNATE in terminal.printed
        await asyncio.to_thread(server.stop)
        await until(lambda: "trying again" in terminal.read())
        terminal.printed = ""
        await asyncio.to_thread(server.start)
        await plant(engine, queue="webhooks")
        await until(lambda: "webhooks" in terminal.read())
        assert "trying again" not in terminal.printed.rpartition("Ctrl-C")[2]
        assert "Traceback" not in terminal.printed
        terminal.press(b"\x03")
        await until(lambda: terminal.status() is not None)
        assert terminal.status() == 0
        assert terminal.printed.rindex(BACK) > terminal.printed.rindex("webhooks")
        assert CURSOR in terminal.printed
        assert "Traceback" not in terminal.printed
    finally:
        terminal.close()
        await engine.dispose()


async def test_a_signal_gives_the_terminal_back_too(server: Server) -> None:
    await migrate(server.url())
    terminal = Terminal(80, "stats", "--watch", DATABASE_URL=server.url())
    try:
        await until(lambda: "No" in terminal.read() or "queue" in terminal.read())
        terminal.ask_to_stop()
        await until(lambda: terminal.status() is not None)
        assert BACK in terminal.printed
        assert CURSOR in terminal.printed
        assert "Traceback" not in terminal.printed
    finally:
        terminal.close()


async def test_without_a_terminal_it_prints_a_line_of_json_for_each_look(server: Server) -> None:
    await migrate(server.url())
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "outbox", "stats", "--watch", "--every", "0.5", "--json"),
        cwd=ROOT,
        env={**os.environ, "DATABASE_URL": server.url()},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=1_000_000,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    for _ in range(2):
        assert (await process.stdout.readline()).startswith(b'{"now": ')
    await asyncio.to_thread(server.stop)
    assert b"the database cannot be" in await process.stderr.readline()
    process.send_signal(signal.SIGINT)
    await process.communicate()
    assert process.returncode == 0
