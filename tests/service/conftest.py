"""The service as it runs in earnest: on a migrated database, with real servers around it, and a worker."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from uuid import UUID, uuid4

import httpx2
import pytest
from fastapi import FastAPI
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from api import database
from api.app import create_app
from api.handlers import outbox
from api.settings import Settings
from outbox import Job, status
from outbox.worker import Worker
from tests.service.servers import Mailbox, Receiver, mail_server, serving
from tests.waiting import eventually

ROOT = Path(__file__).parents[2]
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

Work = Callable[..., Awaitable[list[Job]]]


def alembic(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Alembic as a person would."""
    return subprocess.run(
        [sys.executable, "-m", "alembic", *arguments],
        cwd=ROOT,
        env={**os.environ, "DATABASE_URL": url},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
async def empty_url(postgres_url: str, server: AsyncEngine) -> AsyncIterator[str]:
    """A database without anything in it."""
    name = f"empty_{uuid4().hex}"
    async with server.connect() as connection:
        await connection.execute(text(f'create database "{name}"'))
        yield make_url(postgres_url).set(database=name).render_as_string(hide_password=False)
        await connection.execute(text(f'drop database "{name}" with (force)'))


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    """A mail server."""
    with mail_server() as mailbox:
        yield mailbox


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """A warehouse and an analytics service in one."""
    receiver = Receiver()
    async with serving(receiver) as receiver.url:
        yield receiver


@pytest.fixture
def settings(database_url: str, mailbox: Mailbox, receiver: Receiver, tmp_path: Path) -> Settings:
    """The service's settings, with everything on loopback."""
    return Settings(
        database_url=database_url,
        files_dir=tmp_path,
        smtp_port=mailbox.port,
        warehouse_url=f"{receiver.url}/warehouse",
        warehouse_secret=SecretStr(SECRET),
        analytics_url=f"{receiver.url}/analytics",
        webhook_allowed_hosts=frozenset({"127.0.0.1"}),
    )


@pytest.fixture
async def app(settings: Settings) -> AsyncIterator[FastAPI]:
    """The application, started."""
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        yield app


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the application, without a network between them."""
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        yield client


@pytest.fixture
def engine(app: FastAPI) -> AsyncEngine:
    """The service's own engine."""
    return database.engine()


@pytest.fixture
async def connection(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """To look at what is committed."""
    async with engine.connect() as connection:
        yield await connection.execution_options(isolation_level="AUTOCOMMIT")


@pytest.fixture
def work(settings: Settings, connection: AsyncConnection) -> Work:
    """Runs a real worker until the given jobs are done, and returns them."""

    async def run(*ids: UUID | str) -> list[Job]:
        queues = dict.fromkeys({task.defaults.queue for task in outbox}, 4)
        worker = Worker(outbox, settings.database_url, settings.worker(queues))
        task = asyncio.create_task(worker.run())

        async def done() -> bool:
            if task.done():
                await task
            return all([await _is_done(connection, UUID(str(id))) for id in ids])

        try:
            await eventually(done)
        finally:
            worker.stop()
            await task
        jobs = [await status.get(connection, UUID(str(id))) for id in ids]
        return [job for job in jobs if job is not None]

    return run


async def _is_done(connection: AsyncConnection, id: UUID) -> bool:
    job = await status.get(connection, id)
    assert job is not None, f"there is no job {id}"
    return job.done
