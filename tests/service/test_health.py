"""Alive, and ready only with a database of the right schema."""

import httpx2
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection

from api.settings import Settings, configure


async def test_alive_and_ready(client: httpx2.AsyncClient) -> None:
    assert (await client.get("/livez")).json() == {"status": "ok"}
    assert (await client.get("/readyz")).json() == {"status": "ok"}


async def test_not_ready_with_another_schema(client: httpx2.AsyncClient, connection: AsyncConnection) -> None:
    await connection.execute(text("insert into outbox.schema_version (version) values (99)"))
    await refused(client)


async def test_alive_but_not_ready_without_a_database(client: httpx2.AsyncClient, settings: Settings) -> None:
    gone = make_url(settings.database_url).set(database="gone").render_as_string(hide_password=False)
    configure(settings.model_copy(update={"database_url": gone}))
    await refused(client)
    assert (await client.get("/livez")).status_code == 200


async def test_the_service_says_so_when_the_database_cannot_be_reached(
    client: httpx2.AsyncClient, settings: Settings
) -> None:
    configure(settings.model_copy(update={"database_url": "postgresql+asyncpg://nobody@127.0.0.1:1/gone"}))
    await refused(client)
    answer = await client.post("/v1/signups", json={"email": "ada@example.com", "name": "Ada"})
    assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
    assert int(answer.headers["retry-after"]) > 0


async def refused(client: httpx2.AsyncClient) -> None:
    """The service says that it is not ready, and not why in detail."""
    answer = await client.get("/readyz")
    assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
    assert "gone" not in answer.text
