"""Connections on which no request comes, or only half of one, are closed; all others are left alone."""

import asyncio
from collections.abc import AsyncIterator

import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from api import protocol
from api.protocol import PatientProtocol
from outbox.fastapi import route
from tests.factories import plant
from tests.service.servers import serving
from tests.waiting import DEADLINE

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]

WHOLE = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = WHOLE.replace(b"Host", b"Connection: close\r\nHost")
HALF = [b"", b"G", b"GET /livez HTTP/1.1", b"GET /livez HTTP/1.1\r\nHost: x\r\n", b"\r\n", b"\r\n\r\nGET"]


@pytest.fixture
async def url(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """The service as it is served, but with less patience."""
    monkeypatch.setattr(protocol, "PATIENCE", 0.3)
    async with serving(app, http=PatientProtocol, ws="none", timeout_keep_alive=1) as url:
        yield url


async def connect(url: str, sent: bytes = b"") -> Connection:
    at = httpx2.URL(url)
    reader, writer = await asyncio.open_connection(at.host, at.port)
    writer.write(sent)
    return reader, writer


async def rest(connection: Connection) -> bytes:
    """What comes until the other side closes."""
    async with asyncio.timeout(DEADLINE):
        try:
            return await connection[0].read()
        finally:
            connection[1].close()


async def answer(connection: Connection) -> bytes:
    """One answer, whose body is {"status":"ok"}."""
    async with asyncio.timeout(DEADLINE):
        return await connection[0].readuntil(b"}")


@pytest.mark.parametrize("half", HALF)
@pytest.mark.parametrize("before", [b"", WHOLE], ids=["first", "next"])
async def test_half_a_request_is_not_waited_for(url: str, before: bytes, half: bytes) -> None:
    connection = await connect(url, before)
    if before:
        assert (await answer(connection)).startswith(b"HTTP/1.1 200")
    connection[1].write(half)
    assert await rest(connection) == b""


async def test_nor_when_it_came_with_a_whole_one(url: str) -> None:
    connection = await connect(url, WHOLE + WHOLE[:20])
    assert (await answer(connection)).startswith(b"HTTP/1.1 200")
    connection[1].write(WHOLE[20:25])
    assert await rest(connection) == b""


async def test_who_goes_on_sending_headers_is_not_waited_for_either(url: str) -> None:
    reader, writer = await connect(url, b"GET /livez HTTP/1.1\r\n")
    async with asyncio.timeout(DEADLINE):
        while not reader.at_eof():
            writer.write(b"X-Slow: 1\r\n")
            try:
                await asyncio.wait_for(reader.read(), 0.02)
            except TimeoutError:
                continue
            except ConnectionError:
                break
    writer.close()


async def test_who_waits_for_an_answer_may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "PATIENCE", 0.1)
    app, go = FastAPI(), asyncio.Event()

    @app.get("/livez")
    async def livez() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/")
    async def slow() -> dict[str, str]:
        await go.wait()
        return {"status": "ok"}

    async with serving(app, http=PatientProtocol) as url:
        waiting = await connect(url, b"GET / HTTP/1.1\r\n")
        await rest(await connect(url, LAST))  # so that what follows comes apart
        waiting[1].write(b"Host: x\r\n\r\n")
        await rest(await connect(url, LAST))
        # Made later, and given up: the first had its deadline before.
        assert await rest(await connect(url)) == b""
        go.set()
        assert (await answer(waiting)).startswith(b"HTTP/1.1 200")
        waiting[1].write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await answer(waiting)).startswith(b"HTTP/1.1 200")
        waiting[1].close()


def body(announced: int, sent: bytes, path: str = "/v1/signups", kind: str = "application/json") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\nContent-Length: {announced}\r\n\r\n"
    return head.encode() + sent


@pytest.mark.parametrize(
    ("path", "kind", "sent"),
    [
        ("/v1/signups", "application/json", b'{"email": "'),
        ("/v1/jobs", "application/json", b""),
        ("/v1/imports", "multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data"),
        ("/v1/payments/webhook", "application/json", b"{"),
        ("/outbox/queues/pause", "application/x-www-form-urlencoded", b"name=x"),
    ],
)
async def test_half_a_body_is_not_waited_for(
    url: str, path: str, kind: str, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(route, "PATIENCE", 0.2)
    came = await rest(await connect(url, body(1000, sent, path, kind)))
    assert came.startswith(b"HTTP/1.1 408")
    assert b"connection: close" in came


async def test_who_sends_a_body_steadily_is_waited_for(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route, "PATIENCE", 0.1)
    monkeypatch.setattr(route, "PACE", 1)
    sent = b'{"name": "Ada", "email": "ada@example.com"}'
    steady = await connect(url, body(len(sent), sent[:-1]))  # as many seconds as bytes
    assert (await rest(await connect(url, body(100, b"")))).startswith(b"HTTP/1.1 408")
    steady[1].write(sent[-1:])
    async with asyncio.timeout(DEADLINE):
        assert (await steady[0].readline()) == b"HTTP/1.1 202 Accepted\r\n"
    steady[1].close()


async def test_who_listens_is_not_asked_for_more(
    url: str, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(route, "PATIENCE", 0.2)
    id = await plant(engine)
    request = f"GET /v1/jobs/{id}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    async with asyncio.timeout(DEADLINE):
        reader, writer = await connect(url, request.encode())
        await reader.readuntil(b"event: job")
        # This one came later; it was waited for as long as whoever listens has been.
        assert (await rest(await connect(url, body(100, b"")))).startswith(b"HTTP/1.1 408")
        async with engine.begin() as connection:
            await connection.execute(text("update outbox.live_job set progress = '{\"done\": 7}'"))
        await reader.readuntil(b'"done":7')
        writer.close()
