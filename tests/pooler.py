"""PgBouncer in front of a test's database: a real one, in transaction mode, with few sessions for many clients."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import make_url

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")

_SETTINGS = """
[databases]
* = {server}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {sessions}
max_client_conn = 200
ignore_startup_parameters = {ignored}
server_round_robin = 1
logfile = {log}
"""


@contextmanager
def pooled(url: str, *, sessions: int = 3, ignored: str = "") -> Iterator[str]:
    """The same database by way of a pooler that has so many sessions, which it changes after every transaction.

    :param ignored: settings of a client that it swallows, in place of refusing the client.
    """
    assert PROGRAM is not None
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="outbox-pooler-") as name:
        folder = Path(name)
        settings, log = folder / "pgbouncer.ini", folder / "log"
        settings.write_text(
            _SETTINGS.format(server=_server(url), port=port, sessions=sessions, log=log, ignored=ignored)
        )
        command = [PROGRAM, str(settings)]
        other = _other_account(url)
        if other is not None:
            os.chown(folder, other.pw_uid, other.pw_gid)
        process = subprocess.Popen(
            command,
            user=other and other.pw_uid,
            group=other and other.pw_gid,
            extra_groups=[] if other else None,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            _listens(port, process, log)
            here = make_url(url).set(username="anybody", password=None, host="127.0.0.1", port=port, query={})
            yield here.render_as_string(hide_password=False)
        finally:
            process.terminate()
            process.wait(10)


def _other_account(url: str) -> pwd.struct_passwd | None:
    """Who it runs as where we are root, for it refuses to be: whoever may reach the server's socket."""
    if os.geteuid() != 0:
        return None
    host = _host(url)
    return pwd.getpwuid(Path(host).stat().st_uid) if host.startswith("/") else pwd.getpwnam("nobody")


def _host(url: str) -> str:
    to = make_url(url)
    return to.host or str(to.query["host"])


def _server(url: str) -> str:
    to = make_url(url)
    known = {"host": _host(url), "port": to.port or 5432, "user": to.username, "password": to.password}
    return " ".join(f"{key}={value}" for key, value in known.items() if value is not None)


def _listens(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.02)
    raise RuntimeError(f"PgBouncer did not start: {log.read_text() if log.exists() else 'it said nothing'}")
