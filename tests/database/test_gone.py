"""A database that is gone is answered as such, however it was reached; and nothing else is."""

import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine

from api.postgres import Server
from outbox import Outbox
from outbox.dashboard import outbox_dashboard
from outbox.fastapi import Principal, outbox_router, problem_handlers
from outbox.keys import Scope
from outbox.migrate import migrate
from tests.cluster import version

PROBLEM = "application/problem+json"
PATHS = ("/v1/jobs", "/v1/queues", "/v1/doctor")


def who() -> Principal:
    return Principal("tester", frozenset(Scope))


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server that may be stopped; it listens on a port, and on a socket."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with TemporaryDirectory() as folder:
        # Whoever runs the server, who is not root, must get there.
        Path(folder).chmod(0o755)
        server = Server(Path(folder) / "cluster", version=version(), port=port, settings={"fsync": "off"})
        server.start()
        try:
            yield server
        finally:
            server.stop("immediate")


@pytest.fixture(params=["tcp", "socket"])
async def engine(request: pytest.FixtureRequest, server: Server) -> AsyncIterator[AsyncEngine]:
    url = make_url(server.url())
    if request.param == "socket":
        [found] = server.directory.glob(".s.PGSQL.*[0-9]")
        url = url.set(host=None, query={"host": str(found.parent)})
    await migrate(url.render_as_string(hide_password=False))
    engine = create_async_engine(url, pool_pre_ping=True)
    yield engine
    await engine.dispose()


def application(engine: AsyncEngine) -> FastAPI:
    app, outbox, sessions = FastAPI(), Outbox(), async_sessionmaker(engine)
    problem_handlers(app)
    app.include_router(outbox_router(outbox, sessions, access=who))
    app.include_router(outbox_dashboard(outbox, sessions, access=who))
    return app


def client(app: FastAPI) -> httpx2.AsyncClient:
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    return httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1")


async def test_a_database_that_is_gone_is_said_to_be(server: Server, engine: AsyncEngine) -> None:
    async with client(application(engine)) as here:
        for path in (*PATHS, "/outbox"):
            assert (await here.get(path)).status_code == 200, path
        server.stop("immediate")
        for _ in range(2):  # with connections that were good, and without
            for path in PATHS:
                answer = await here.get(path)
                assert (answer.status_code, answer.headers["content-type"]) == (503, PROBLEM), path
                assert answer.json()["detail"] == "The database cannot be reached."
                assert int(answer.headers["retry-after"]) > 0
            page = await here.get("/outbox")
            assert (page.status_code, page.headers["retry-after"]) == (503, "2")
            assert "The database cannot be reached." in page.text
        server.start()
        for path in (*PATHS, "/outbox"):
            assert (await here.get(path)).status_code == 200, path


async def test_errors_of_files_and_other_servers_are_the_applications_own() -> None:
    app = application(create_async_engine("postgresql+asyncpg://127.0.0.1:1/none"))

    @app.get("/file")
    async def file() -> None:
        open("/there/is/no/such/file")  # noqa: ASYNC230, SIM115

    @app.get("/other-server")
    async def other_server() -> None:
        raise ConnectionRefusedError("the mail server")

    @app.get("/too-slow")
    async def too_slow() -> None:
        raise TimeoutError

    async with client(app) as here:
        for path in ("/file", "/other-server", "/too-slow"):
            answer = await here.get(path)
            assert (answer.status_code, answer.headers["content-type"]) == (500, PROBLEM), path
            assert "database" not in answer.text
