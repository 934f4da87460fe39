"""Fixtures of the database tests: the worker's own kind of connection, and a plain one to look with."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from outbox import Outbox, connection
from outbox.connection import Link
from outbox.settings import WorkerSettings


@pytest.fixture
async def link(database_url: str) -> AsyncIterator[Link]:
    """A worker's connection; a statement that has to wait for a lock fails after a second."""
    link = Link(database_url, WorkerSettings(), "test", timeout=5)
    yield link
    await link.close()


@pytest.fixture
async def other_link(database_url: str) -> AsyncIterator[Link]:
    """Another worker's connection."""
    link = Link(database_url, WorkerSettings(), "other test", timeout=5)
    yield link
    await link.close()


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A plain connection of a bystander, with the server's own planner settings."""
    db = await asyncpg.connect(connection.dsn(database_url))
    yield db
    await db.close(timeout=5)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every statement that asyncpg prepares and runs in this process, from any thread."""
    said: list[str] = []
    fetch = asyncpg.Connection.fetch

    async def fetch_and_note(self: asyncpg.Connection, query: str, *args: object, **options: object) -> object:
        said.append(query)
        return await fetch(self, query, *args, **options)

    monkeypatch.setattr(asyncpg.Connection, "fetch", fetch_and_note)
    return said


@pytest.fixture
def outbox() -> Outbox:
    """One task, which answers its argument."""
    outbox = Outbox()

    @outbox.task()
    async def noop(n: int = 0) -> int:
        return n

    return outbox
