"""The embedded PostgreSQL: shared, kept, and up again after whatever happened to it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import psutil
import pytest

from api.postgres import PostgresUnavailable, Server, embedded
from outbox.connection import dsn
from tests.cluster import Cluster, version

HOLD = """
import sys, pathlib
from api.postgres import embedded
with embedded(pathlib.Path(sys.argv[1]), version=int(sys.argv[2])) as url:
    print(url, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """Where a server may be; none is left running there."""
    yield tmp_path
    Server(tmp_path / str(version()), version=version()).stop("immediate")


def hold(directory: Path) -> subprocess.Popen[str]:
    """Another process that uses the server, until its input is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, directory, str(version())],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("postgresql+asyncpg://")
    return process


async def ask(url: str, statement: str) -> object:
    """One value from the database."""
    connection = await asyncpg.connect(dsn(url))
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def test_the_data_stays(directory: Path) -> None:
    with embedded(directory, version=version()) as url:
        await ask(url, "create table kept as select 1 as n")
    with embedded(directory, version=version()) as url:
        assert await ask(url, "select n from kept") == 1
    with embedded(directory, version=version(), fresh=True) as url:
        assert await ask(url, "select to_regclass('kept')::text") is None


async def test_the_last_to_leave_stops_it(directory: Path) -> None:
    server = Server(directory / str(version()), version=version())
    other = hold(directory)
    with embedded(directory, version=version()):
        other.communicate()
        assert server.running()
    assert not server.running()


async def test_who_was_killed_does_not_count(directory: Path) -> None:
    server = Server(directory / str(version()), version=version())
    other = hold(directory)
    other.kill()
    other.communicate()
    assert server.running()
    with embedded(directory, version=version()) as url:
        assert await ask(url, "select 1") == 1
    assert not server.running()


async def test_a_killed_server_starts_again_though_its_number_is_somebody_elses(directory: Path) -> None:
    server = Server(directory / str(version()), version=version())
    other = hold(directory)
    pid = server.pid()
    other.kill()
    os.kill(pid, signal.SIGKILL)
    other.communicate()
    psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=10)
    for left in (server.data / "postmaster.pid", server.directory / ".s.PGSQL.5432.lock"):
        if left.exists():
            left.write_text(left.read_text().replace(str(pid), str(os.getpid())))
    with embedded(directory, version=version()) as url:
        assert await ask(url, "select 1") == 1


async def test_a_long_path_is_no_obstacle(tmp_path: Path) -> None:
    with embedded(tmp_path / ("x" * 100), version=version()) as url:
        assert await ask(url, "select 1") == 1


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(PostgresUnavailable, match="make setup"), embedded(tmp_path):
        pass


async def test_a_cluster_keeps_what_was_committed_when_it_is_killed(tmp_path: Path) -> None:
    with Cluster(tmp_path / "cluster") as cluster:
        await ask(cluster.url(), "create table kept as select 1 as n")
        cluster.kill()
        cluster.start()
        assert await ask(cluster.url(), "select n from kept") == 1
        cluster.restart("immediate")
        assert await ask(cluster.url(), "select n from kept") == 1
