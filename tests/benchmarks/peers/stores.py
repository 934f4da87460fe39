"""Empty stores for the peers: a database of its own in a Postgres that runs, or a Redis of its own."""

import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import asyncpg
from sqlalchemy import make_url

from outbox import connection
from tests.benchmarks.peers import PeerFailed


@asynccontextmanager
async def database(url: str) -> AsyncIterator[str]:
    """An empty database on the server of this SQLAlchemy URL, for the time of the block; gives its libpq URL."""
    name = f"peer_{secrets.token_hex(6)}"
    server = await asyncpg.connect(connection.dsn(url))
    await server.execute(f'create database "{name}"')
    try:
        yield make_url(url).set(drivername="postgresql", database=name).render_as_string(hide_password=False)
    finally:
        await server.execute(f'drop database "{name}" with (force)')
        await server.close()


@contextmanager
def redis() -> Iterator[str]:
    """An empty Redis on a free port of loopback, for the time of the block; it syncs to disk every second.

    :raises PeerFailed: if there is no Redis on this machine.
    """
    program = shutil.which("redis-server")
    if program is None:
        raise PeerFailed("there is no redis-server here; on Debian and Ubuntu: apt install redis-server")
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="outbox-redis-") as folder:
        place = ["--bind", "127.0.0.1", "--port", str(port), "--dir", folder]
        durable = ["--appendonly", "yes", "--appendfsync", "everysec", "--save", ""]
        process = subprocess.Popen([program, *place, *durable], stdout=subprocess.DEVNULL)
        try:
            _answers(port, process)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.terminate()
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _answers(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with socket.create_connection(("127.0.0.1", port), 1) as link:
                link.sendall(b"PING\r\n")
                if link.recv(16).startswith(b"+PONG"):
                    return
        except OSError:
            pass
        time.sleep(0.05)
    raise PeerFailed("redis-server did not start")
