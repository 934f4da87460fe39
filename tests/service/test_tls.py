"""Whoever connects to the database proves who it is, if the address says so: all of them alike, or nobody does.

The address is libpq's, or SQLAlchemy's where that has words of its own.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.pool import NullPool

from api.app import create_app
from api.settings import Settings
from outbox import Outbox, WorkerSettings, address, status
from outbox.connection import FAILURES, Link
from outbox.errors import DeclarationError
from outbox.worker import Worker
from tests import forks
from tests.tls import Authority, Door, Identity, door
from tests.waiting import eventually, until

ROOT = Path(__file__).parents[2]
VERIFIED = {"sslmode": "verify-full"}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who has signed the server's certificate."""
    return Authority(tmp_path_factory.mktemp("ours"), "ours")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who has not."""
    return Authority(tmp_path_factory.mktemp("theirs"), "theirs")


@pytest.fixture(scope="module")
def identity(authority: Authority) -> Identity:
    """The server's certificate, for one of the two names that it is reached by."""
    return authority.identity("localhost")


@pytest.fixture
def front(database_url: str, identity: Identity) -> Iterator[Door]:
    """The test's database behind TLS."""
    with door(database_url, identity) as opened:
        yield opened


async def link(url: str) -> str:
    """What goes wrong when the worker connects; nothing if all is well."""
    try:
        link = Link(url, WorkerSettings(), "test")
        await link.fetch("select 1")
    except (*FAILURES, DeclarationError) as exc:
        return str(exc)
    await link.close()
    return ""


async def engine(url: str) -> str:
    """The same for an application."""
    try:
        engine = address.engine(url, poolclass=NullPool)
        async with engine.connect() as connection:
            await connection.execute(text("select 1"))
    except (*FAILURES, DBAPIError, DeclarationError) as exc:
        return str(exc)
    return ""


def command(*arguments: str) -> Callable[[str], Awaitable[str]]:
    """The same for a command of the command line."""

    async def run(url: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "DATABASE_URL": url}
        code, printed = await forks.outbox(arguments, environment, cwd=ROOT)
        assert code in (0, 78), printed
        return printed if code else ""

    return run


async def alembic(url: str) -> str:
    """The same for the migrations."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "alembic", "upgrade", "head"),
        cwd=ROOT,
        env={**os.environ, "DATABASE_URL": url},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    _, said = await process.communicate()
    return said.decode() if process.returncode else ""


everybody = pytest.mark.parametrize(
    "connect",
    [
        link,
        engine,
        command("jobs", "ls"),
        command("migrate"),
        command("check", "api.handlers:outbox"),
        pytest.param(alembic, marks=pytest.mark.slow),
    ],
    ids=["worker", "engine", "jobs ls", "migrate", "check", "alembic"],
)


in_both_words = pytest.mark.parametrize("word", ["sslmode", "ssl"])


@everybody
@in_both_words
async def test_who_is_who_they_say_is_let_in(
    connect: Callable[[str], Awaitable[str]], front: Door, authority: Authority, word: str
) -> None:
    said = await connect(front.url("localhost", **{word: "verify-full", "sslrootcert": str(authority.file)}))
    assert said == ""
    assert front.encrypted > 0
    assert (front.refused, front.plain) == (0, 0)


@everybody
@in_both_words
async def test_whose_certificate_a_stranger_has_signed_is_refused(
    connect: Callable[[str], Awaitable[str]], front: Door, stranger: Authority, word: str
) -> None:
    said = await connect(front.url("localhost", **{word: "verify-full", "sslrootcert": str(stranger.file)}))
    assert "certificate verify failed" in said
    assert (front.encrypted, front.plain) == (0, 0)


@everybody
async def test_who_has_the_certificate_of_another_host_is_refused(
    connect: Callable[[str], Awaitable[str]], front: Door, authority: Authority
) -> None:
    said = await connect(front.url("127.0.0.1", **VERIFIED, sslrootcert=str(authority.file)))
    assert "certificate is not valid for '127.0.0.1'" in said
    assert (front.encrypted, front.plain) == (0, 0)


@everybody
async def test_who_has_no_tls_is_refused_and_gets_to_hear_nothing(
    connect: Callable[[str], Awaitable[str]], database_url: str, authority: Authority
) -> None:
    with door(database_url, None) as front:
        said = await connect(front.url("localhost", **VERIFIED, sslrootcert=str(authority.file)))
        assert "rejected SSL upgrade" in said
        assert front.plain == 0


@everybody
async def test_a_certificate_of_ones_own_is_shown(
    connect: Callable[[str], Awaitable[str]], database_url: str, identity: Identity, authority: Authority
) -> None:
    worker = authority.identity("worker")
    shown = {"sslcert": str(worker.certificate), "sslkey": str(worker.key)}
    with door(database_url, identity, believes=authority) as front:
        trusted = {**VERIFIED, "sslrootcert": str(authority.file)}
        assert await connect(front.url("localhost", **trusted, **shown)) == ""
        assert (front.encrypted > 0, front.refused) == (True, 0)
        assert await connect(front.url("localhost", **trusted)) != ""
        assert front.refused > 0


@everybody
@pytest.mark.parametrize(
    ("wrong", "named"),
    [({"sslmode": "verify_all"}, "verify-full"), ({**VERIFIED, "sslrootcert": "/nowhere/ca.crt"}, "/nowhere/ca.crt")],
)
async def test_what_can_never_work_is_said_before_anybody_is_asked(
    connect: Callable[[str], Awaitable[str]], front: Door, wrong: dict[str, str], named: str
) -> None:
    said = await connect(front.url("localhost", **wrong))
    assert "the database URL's ssl" in said
    assert named in said
    assert (front.encrypted, front.refused, front.plain) == (0, 0, 0)


async def double(n: int) -> int:
    """A task."""
    return 2 * n


async def test_a_worker_runs_jobs_over_tls_and_over_nothing_else(front: Door, authority: Authority) -> None:
    outbox, url = Outbox(), front.url("localhost", **VERIFIED, sslrootcert=str(authority.file))
    task = outbox.task()(double)
    engine = address.engine(url)
    async with AsyncSession(engine) as session, session.begin():
        id = task.enqueue(session, 21).id
    worker = Worker(outbox, url)
    working = asyncio.create_task(worker.run())

    async def ended() -> object:
        async with AsyncSession(engine) as session:
            job = await status.get(session, id)
        return job is not None and job.done and job.result == 42

    await eventually(ended)
    worker.stop()
    assert await working
    await engine.dispose()
    assert front.encrypted > 2  # the engine, and each of the worker's connections, the listener's included
    assert (front.refused, front.plain) == (0, 0)


async def test_a_worker_that_meets_an_impostor_says_so_and_tells_it_nothing(
    front: Door, stranger: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = Outbox()
    outbox.task()(double)
    worker = Worker(outbox, front.url("localhost", **VERIFIED, sslrootcert=str(stranger.file)))
    working = asyncio.create_task(worker.run())
    await until(lambda: front.refused > 3)  # it goes on trying, for the right one may come back
    worker.stop()
    await working
    assert "certificate verify failed" in caplog.text
    assert (front.encrypted, front.plain) == (0, 0)


@pytest.mark.parametrize("is_right", [True, False])
async def test_the_service_is_ready_if_its_database_is_the_right_one(
    front: Door, authority: Authority, stranger: Authority, is_right: bool
) -> None:
    believed = authority if is_right else stranger
    url = front.url("localhost", **VERIFIED, sslrootcert=str(believed.file))
    app = create_app(Settings(database_url=url))
    transport = httpx2.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client,
    ):
        assert (await client.get("/readyz")).status_code == (200 if is_right else 503)
    assert (front.encrypted > 0, front.plain) == (is_right, 0)
