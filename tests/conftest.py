"""The database of the tests: OUTBOX_TEST_DATABASE says which server.

Unset: an embedded one, of the major version OUTBOX_TEST_POSTGRES (18 or 16). ``testcontainers``: a container, which
needs Docker. A URL: that server; its user must be allowed to create databases. Each test gets a database of its own,
copied from one that all migrations have been applied to.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.pool import NullPool

from api.postgres import embedded
from tests.cluster import version

ROOT = Path(__file__).parents[1]

# Whatever the environment says of databases and workers is not meant for tests.
for name in [name for name in os.environ if name == "DATABASE_URL" or name.startswith("OUTBOX_")]:
    if not name.startswith("OUTBOX_TEST_"):
        del os.environ[name]

# The embedded server is thrown away: a power cut may spoil it, and it need not wait for the disk.
CARELESS = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off", "max_wal_size": "256MB"}
MEMORY = Path("/dev/shm")
ROOM = 3 * 1024**3
PREPARED = {"max_prepared_transactions": "2"}


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The server's own database ``postgres``, as a user who may create databases."""
    wanted = os.environ.get("OUTBOX_TEST_DATABASE", "")
    if wanted == "testcontainers":
        with _container() as url:
            yield url
    elif wanted:
        yield make_url(wanted).set(drivername="postgresql+asyncpg").render_as_string(hide_password=False)
    else:
        with _folder() as folder, embedded(folder, version=version(), settings=CARELESS | PREPARED, fresh=True) as url:
            yield url


@contextmanager
def _folder() -> Iterator[Path]:
    """Where the server's files are: in memory if there is room, for a disk gets slow by so many that come and go.

    A name that is the same each time, so that the next run finds and ends what one that was killed has left.
    """
    folder = MEMORY / f"outbox-test-{sha256(str(ROOT).encode()).hexdigest()[:12]}"
    try:
        folder.mkdir(mode=0o755, exist_ok=True)
        roomy = shutil.disk_usage(folder).free > ROOM and folder.stat().st_uid == os.getuid()
    except OSError:
        roomy = False
    if not roomy:
        yield ROOT / ".local" / "test-postgres"
        return
    yield folder
    if not list(folder.glob("*/data/postmaster.pid")):  # else another run of this checkout goes on
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _container() -> Iterator[str]:
    from testcontainers.community.postgres import PostgresContainer

    with PostgresContainer(f"postgres:{version()}", driver="asyncpg") as container:
        yield container.get_connection_url()


@pytest.fixture(scope="session")
async def server(postgres_url: str) -> AsyncIterator[AsyncEngine]:
    """Runs statements that no transaction may be around, such as CREATE DATABASE."""
    engine = create_async_engine(postgres_url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    yield engine
    await engine.dispose()


@pytest.fixture(scope="session")
async def template(postgres_url: str, server: AsyncEngine) -> AsyncIterator[str]:
    """The name of a database that all migrations have been applied to."""
    name = f"template_{uuid4().hex}"
    await _execute(server, f'create database "{name}"')
    migrating = subprocess.run(  # noqa: ASYNC221 - nothing else runs yet
        [sys.executable, "-m", "alembic", "upgrade", "head"],
        cwd=ROOT,
        env={**os.environ, "DATABASE_URL": _named(postgres_url, name)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert migrating.returncode == 0, migrating.stderr
    yield name
    await _execute(server, f'drop database "{name}" with (force)')


@pytest.fixture
async def database_url(postgres_url: str, server: AsyncEngine, template: str) -> AsyncIterator[str]:
    """A database of the test's own, with the library's schema and the business tables, and no rows."""
    name = f"test_{uuid4().hex}"
    await _execute(server, f'create database "{name}" template "{template}" strategy file_copy')
    yield _named(postgres_url, name)
    await _execute(server, f'drop database "{name}" with (force)')


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """An engine on the test's database."""
    engine = create_async_engine(database_url)
    yield engine
    await engine.dispose()


@pytest.fixture
def sessions(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    """Makes sessions on the test's database."""
    return async_sessionmaker(engine, expire_on_commit=False)


@pytest.fixture
async def session(sessions: async_sessionmaker[AsyncSession]) -> AsyncIterator[AsyncSession]:
    """One session on the test's database; what it does not commit is gone."""
    async with sessions() as session:
        yield session


async def _execute(server: AsyncEngine, statement: str) -> None:
    async with server.connect() as connection:
        await connection.execute(text(statement))


def _named(url: str, database: str) -> str:
    return make_url(url).set(database=database).render_as_string(hide_password=False)
