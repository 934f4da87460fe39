"""Fixtures of the crash tests: a Postgres of their own that may be killed, real workers, clients under load."""

import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from outbox.connection import dsn
from tests.cluster import Cluster
from tests.crash.clients import Clients
from tests.crash.database import Database, Report
from tests.crash.processes import Crew

LOCAL = Path(__file__).parents[2] / ".local"
SEED = int(os.environ.get("OUTBOX_TEST_SEED", "0")) or int.from_bytes(os.urandom(4))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The server, with fsync on. Every test finds it running, whatever the one before did to it."""
    LOCAL.mkdir(exist_ok=True)
    # Not in pytest's own folder, which another pytest that starts meanwhile closes to the server's user.
    with (
        TemporaryDirectory(prefix="crash-postgres-", dir=LOCAL, ignore_cleanup_errors=True) as folder,
        Cluster(Path(folder), settings={"shared_buffers": "64MB"}) as cluster,
    ):
        yield cluster


@pytest.fixture
async def bare_database(cluster: Cluster, tmp_path: Path) -> AsyncIterator[Database]:
    """A database with nothing in it."""
    cluster.start()
    name = f"crash_{uuid4().hex}"
    server = await asyncpg.connect(dsn(cluster.url()))
    await server.execute(f'create database "{name}"')
    await server.close()
    database = Database(cluster.url(name), tmp_path)
    yield database
    await database.close()
    cluster.start()
    server = await asyncpg.connect(dsn(cluster.url()))
    await server.execute(f'drop database "{name}" with (force)')
    await server.close()


@pytest.fixture
async def database(bare_database: Database) -> Database:
    """A database with the library's schema and the recorder."""
    await bare_database.prepare()
    return bare_database


@pytest.fixture
def crew(bare_database: Database, tmp_path: Path) -> Iterator[Crew]:
    """Starts worker processes, and leaves none behind."""
    crew = Crew(bare_database, tmp_path)
    yield crew
    crew.end()


@pytest.fixture
async def engine(bare_database: Database) -> AsyncIterator[AsyncEngine]:
    """The clients' engine on the test's database."""
    engine = create_async_engine(bare_database.url, pool_pre_ping=True)
    yield engine
    await engine.dispose()


@pytest.fixture
def clients(engine: AsyncEngine, database: Database) -> Clients:
    """Clients with a seed that OUTBOX_TEST_SEED repeats; a test that fails shows it."""
    sys.stdout.write(f"OUTBOX_TEST_SEED={SEED}\n")
    return Clients(engine, database, seed=SEED)


@pytest.fixture
def seed() -> int:
    """The seed of everything random here."""
    return SEED


@pytest.fixture
def report(record_property: Callable[[str, object], None]) -> Report:
    """Put figures on record: into the JUnit file, and on the terminal at the end (``-rP`` shows them)."""

    def put(**figures: object) -> None:
        for name, figure in figures.items():
            record_property(name, figure)
        sys.stdout.write(" ".join(f"{name}={figure}" for name, figure in figures.items()) + "\n")

    return put
