"""The service as it is started, with a crowd at its door: it costs little memory, and others are served meanwhile."""

import asyncio
from pathlib import Path

import httpx2
import psutil
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.factories import plant
from tests.service.servers import service
from tests.waiting import DEADLINE

HALF_HEADERS = b"GET /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Long: "
HALF_BODY = (
    b"POST /v1/signups HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    b'Content-Length: 500000\r\n\r\n{"name": "'
)
HALVES = 300
STREAMS = 500
MEMORY = 50 * 1024 * 1024
PATIENCE = 90.0
"""Seconds, of which nothing is proven: a request that does not come is given up after 10, its body after 20."""

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def connect(url: str, sent: bytes) -> Connection:
    at = httpx2.URL(url)
    reader, writer = await asyncio.open_connection(at.host, at.port)
    writer.write(sent)
    return reader, writer


async def stream(url: str, id: object) -> Connection:
    """A stream that has told how the job is."""
    request = f"GET /v1/jobs/{id}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    connection = await connect(url, request.encode())
    assert await connection[0].readline() == b"HTTP/1.1 200 OK\r\n"
    await connection[0].readuntil(b"event: job")
    return connection


async def close(connections: list[Connection]) -> None:
    for _, writer in connections:
        writer.close()
    await asyncio.gather(*[writer.wait_closed() for _, writer in connections], return_exceptions=True)


@pytest.mark.slow
async def test_half_requests_and_many_streams(database_url: str, engine: AsyncEngine, tmp_path: Path) -> None:
    id = await plant(engine)
    with service(database_url, tmp_path) as (url, process):
        memory = psutil.Process(process.pid).memory_info
        async with httpx2.AsyncClient(base_url=url, timeout=DEADLINE) as client, asyncio.timeout(PATIENCE):
            await close(await asyncio.gather(*[stream(url, id) for _ in range(20)]))
            await served(client, id, "before")
            before = memory().rss

            halves = [await connect(url, (HALF_HEADERS, HALF_BODY)[n % 2] + b"x" * 1000) for n in range(HALVES)]
            streams = [each for _ in range(10) for each in await gather_streams(url, id, STREAMS // 10)]
            await served(client, id, "meanwhile")
            grown = memory().rss - before

            # Whoever sends nothing more is sent away...
            ends = await asyncio.gather(*[reader.read() for reader, _ in halves])
            assert set(ends[::2]) == {b""}
            assert {end[:12] for end in ends[1::2]} == {b"HTTP/1.1 408"}
            # ... and whoever listens hears.
            async with engine.begin() as connection:
                await connection.execute(text("update outbox.live_job set progress = '{\"done\": 7}'"))
            await asyncio.gather(*[reader.readuntil(b'"done":7') for reader, _ in streams])
            grown = max(grown, memory().rss - before)
            await close([*halves, *streams])
            await served(client, id, "afterwards")
    assert grown < MEMORY


async def gather_streams(url: str, id: object, count: int) -> list[Connection]:
    return await asyncio.gather(*[stream(url, id) for _ in range(count)])


async def served(client: httpx2.AsyncClient, id: object, name: str) -> None:
    """Others are answered: those who ask, and those who write."""
    for n in range(20):
        assert (await client.get(f"/v1/jobs/{id}")).status_code == 200
        body = {"email": f"{name}{n}@example.com", "name": "Ada"}
        assert (await client.post("/v1/signups", json=body)).status_code == 202
