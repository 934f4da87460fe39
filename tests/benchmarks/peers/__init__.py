"""Other job queues, measured beside ours: each in an environment of its own, by an adapter that its Python runs.

An adapter is a module of this package that imports its peer and ``_adapter``, and nothing of ours. This module is
imported with it, so it needs nothing but the standard library too.
"""

import asyncio
import fcntl
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

ROOT: Final = Path(__file__).resolve().parents[3]

ENVIRONMENTS: Final = ROOT / ".local" / "peers"
"""Where the environments of the peers are kept."""

LAST_WORDS: Final = 4000
"""Characters of a failed adapter's stderr that its error shows."""


class PeerFailed(Exception):
    """A peer could not be installed or run; has the end of what it printed."""


@dataclass(frozen=True)
class Peer:
    """Another job queue: what to install for it, and which store it needs."""

    name: str
    requirements: list[str]
    needs: Literal["postgres", "redis"]
    python: tuple[int, int] = (3, 11)
    """The oldest Python that it runs on."""
    jobs: int = 20_000
    """As many as a drain should have at least, so that it takes a second or more."""


PEERS: Final = {
    peer.name: peer
    for peer in (
        Peer("pgqueuer", ["pgqueuer[asyncpg]==1.6.0", "asyncpg==0.32.0", "uvloop==0.23.0"], "postgres", jobs=50_000),
        Peer(
            "procrastinate",
            ["procrastinate==3.10.0", "psycopg[binary,pool]==3.3.9", "psycopg-pool==3.3.3", "uvloop==0.23.0"],
            "postgres",
            jobs=3000,
        ),
        Peer("oban", ["oban==0.7.0", "psycopg[binary,pool]==3.3.9", "uvloop==0.23.0"], "postgres", python=(3, 12)),
        Peer("awa", ["awa-pg==0.6.9", "uvloop==0.23.0"], "postgres", jobs=30_000),
        Peer("celery", ["celery[redis]==5.7.0", "redis==8.1.0", "hiredis==3.5.0"], "redis", jobs=3000),
        Peer("arq", ["arq==0.28.0", "redis[hiredis]==5.3.1", "uvloop==0.23.0"], "redis", jobs=3000),
        Peer("dramatiq", ["dramatiq[redis]==2.2.1", "redis==8.1.0", "hiredis==3.5.0"], "redis", jobs=3000),
    )
}


def install(peer: Peer, folder: Path = ENVIRONMENTS) -> Path:
    """The Python of this peer's environment, which is made if it is not there.

    :raises PeerFailed: if there is no suitable Python, or its packages cannot be installed.
    """
    digest = hashlib.sha256("\n".join([*peer.requirements, repr(peer.python)]).encode()).hexdigest()[:12]
    place = folder.resolve() / f"{peer.name}-{digest}"
    python, complete = place / "bin" / "python", place / ".complete"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{place.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            shutil.rmtree(place, ignore_errors=True)
            _make(peer, place, python)
            complete.touch()
    return python


def _make(peer: Peer, place: Path, python: Path) -> None:
    base = _suitable(peer.python)
    uv = Path(sys.executable).with_name("uv")
    try:
        if not uv.exists():
            raise PeerFailed("there is no uv")
        _do([uv, "venv", "--quiet", "--python", base, place])
        _do([uv, "pip", "install", "--quiet", "--python", python, *peer.requirements])
    except PeerFailed:
        # uv does not read the settings of pip: where only those name the package index, pip finds it.
        shutil.rmtree(place, ignore_errors=True)
        _do([base, "-m", "venv", place])
        _do([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *peer.requirements])


def _suitable(oldest: tuple[int, int]) -> str:
    for candidate in _pythons():
        if sys.version_info[:2] >= oldest and candidate == sys.executable:
            return candidate
        code = f"import ensurepip, sys, venv; sys.exit(sys.version_info[:2] < {oldest})"
        if subprocess.run([candidate, "-c", code], capture_output=True, check=False).returncode == 0:
            return candidate
    raise PeerFailed(f"needs Python {oldest[0]}.{oldest[1]} or newer, which is not here")


def _pythons() -> Iterator[str]:
    """Our own, so that the peers are measured on the same one if they can be, then the others, the newest first."""
    yield sys.executable
    for name in ("python3.14", "python3.13", "python3.12", "python3"):
        if found := shutil.which(name):
            yield found
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    yield from sorted(map(str, versions.glob("3.1?*/bin/python")), reverse=True)


def _do(command: list[str | Path]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PeerFailed((done.stdout + done.stderr)[-LAST_WORDS:])


async def run(
    peer: Peer, command: str, url: str, options: Mapping[str, float], *, folder: Path = ENVIRONMENTS, limit: float = 900
) -> dict[str, Any]:
    """Run the adapter of this peer and return what it prints: the keys of a drain or of a latency run.

    :param url: libpq's address of an empty database, or of an empty Redis.
    :param limit: seconds for the run; the environment is made before.
    :param options: of the adapter: jobs, workers, pause.
    :raises PeerFailed: if it cannot be installed, fails, or takes too long.
    """
    python = await asyncio.to_thread(install, peer, folder)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    shape = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    # Without the script's own folder in the path (-P): the adapters bear the names of the packages they import.
    process = await asyncio.create_subprocess_exec(
        *[str(python), "-P", "-m", f"{__name__}.{peer.name}", command, "--url", url, *shape],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,  # its workers die with it when the time is up
    )
    try:
        printed, said = await asyncio.wait_for(process.communicate(), limit)
    except TimeoutError as exc:
        raise PeerFailed(f"{peer.name} took more than {limit:g} s to {command}") from exc
    finally:
        _end(process.pid)
    if process.returncode != 0 or not printed.strip():
        raise PeerFailed(f"{peer.name} failed ({process.returncode}):\n{said.decode(errors='replace')[-LAST_WORDS:]}")
    result: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return result | {"peer": peer.name, "machine": platform.machine()}


def _end(session: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(session, signal.SIGKILL)
