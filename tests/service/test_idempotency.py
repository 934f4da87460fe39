"""A request that is sent again with its Idempotency-Key is done once, and answered alike."""

import asyncio
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from api.database import sessions
from outbox import queue
from tests.waiting import eventually

ORDER: dict[str, Any] = {
    "email": "ada@example.com",
    "lines": [{"sku": "TEA", "quantity": 2, "unit_price_cents": 1250}],
}
KEY = {"Idempotency-Key": "7c9e6679-7425-40de-944b-e07fc1f90ae7"}


async def orders(connection: AsyncConnection) -> int:
    return int(await connection.scalar(text("select count(*) from orders")) or 0)


async def test_the_same_request_is_answered_byte_for_byte_and_done_once(
    client: httpx2.AsyncClient, connection: AsyncConnection
) -> None:
    first = await client.post("/v1/orders", json=ORDER, headers=KEY)
    assert first.status_code == 202, first.text
    assert "idempotency-replayed" not in first.headers
    for _ in range(2):
        again = await client.post("/v1/orders", json=ORDER, headers=KEY)
        assert (again.status_code, again.content) == (202, first.content)
        for name in ("location", "retry-after", "content-type"):
            assert again.headers[name] == first.headers[name]
        assert again.headers["idempotency-replayed"] == "true"
    assert await orders(connection) == 1
    assert await connection.scalar(text("select count(*) from outbox.job")) == 4


async def test_without_a_key_each_is_done(client: httpx2.AsyncClient, connection: AsyncConnection) -> None:
    for _ in range(2):
        assert (await client.post("/v1/orders", json=ORDER)).status_code == 202
    assert await orders(connection) == 2


async def test_another_key_and_another_address_are_other_requests(
    client: httpx2.AsyncClient, connection: AsyncConnection
) -> None:
    await client.post("/v1/orders", json=ORDER, headers=KEY)
    await client.post("/v1/orders", json=ORDER, headers={"Idempotency-Key": "another"})
    signup = await client.post("/v1/signups", json={"email": "ada@example.com", "name": "Ada"}, headers=KEY)
    assert signup.status_code == 202
    assert await orders(connection) == 2


async def test_the_same_key_with_another_body_is_refused(
    client: httpx2.AsyncClient, connection: AsyncConnection
) -> None:
    await client.post("/v1/orders", json=ORDER, headers=KEY)
    other = await client.post("/v1/orders", json=ORDER | {"email": "bob@example.com"}, headers=KEY)
    assert (other.status_code, other.headers["content-type"]) == (422, "application/problem+json")
    assert await orders(connection) == 1


async def test_while_the_first_is_under_way_the_second_is_told_so(
    client: httpx2.AsyncClient, connection: AsyncConnection
) -> None:
    # The first one waits for a row that a third transaction holds.
    signup = {"email": "ada@example.com", "name": "Ada"}
    async with sessions() as session:
        await session.execute(
            text("insert into users (id, email, name) values (gen_random_uuid(), :email, 'x')"), signup
        )
        first = asyncio.create_task(client.post("/v1/signups", json=signup, headers=KEY))
        await eventually(lambda: connection.scalar(text("select exists (select from pg_locks where not granted)")))
        second = await client.post("/v1/signups", json=signup, headers=KEY)
        assert (second.status_code, second.headers["content-type"]) == (409, "application/problem+json")
        assert int(second.headers["retry-after"]) > 0
        await session.rollback()
    assert (await first).status_code == 202
    assert (await client.post("/v1/signups", json=signup, headers=KEY)).content == (await first).content


async def test_of_many_at_once_one_is_done(client: httpx2.AsyncClient, connection: AsyncConnection) -> None:
    answers = await asyncio.gather(*(client.post("/v1/orders", json=ORDER, headers=KEY) for _ in range(8)))
    assert {answer.status_code for answer in answers} <= {202, 409}
    assert len({answer.content for answer in answers if answer.status_code == 202}) == 1
    assert await orders(connection) == 1


async def test_what_failed_leaves_the_key_free(client: httpx2.AsyncClient, connection: AsyncConnection) -> None:
    invalid = await client.post("/v1/orders", json=ORDER | {"lines": []}, headers=KEY)
    assert invalid.status_code == 422
    await queue.set_ceiling(connection, "mail", 0)
    full = await client.post("/v1/orders", json=ORDER, headers=KEY)
    assert full.status_code == 503
    await queue.set_ceiling(connection, "mail", None)
    assert (await client.post("/v1/orders", json=ORDER, headers=KEY)).status_code == 202
    assert await orders(connection) == 1


@pytest.mark.parametrize("key", ["", "x" * 256, "with space", "a\tb"])
async def test_a_key_that_is_none_is_refused(client: httpx2.AsyncClient, connection: AsyncConnection, key: str) -> None:
    answer = await client.post("/v1/orders", json=ORDER, headers={"Idempotency-Key": key})
    assert answer.status_code == 422
    assert await orders(connection) == 0


async def test_the_documentation_tells_of_the_header(app: FastAPI) -> None:
    paths = app.openapi()["paths"]
    for path in ("/v1/orders", "/v1/signups", "/v1/mailings"):
        assert "Idempotency-Key" in {each["name"] for each in paths[path]["post"]["parameters"]}
