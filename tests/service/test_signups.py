"""Sign-ups: a user and the welcome mail, or neither."""

import asyncio
import json

import httpx2
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from outbox import State, queue
from tests.service.conftest import Work
from tests.service.servers import Mailbox

ADA = {"email": "Ada@Example.com", "name": "Ada"}


async def test_the_user_is_there_and_the_mail_arrives(
    client: httpx2.AsyncClient, work: Work, mailbox: Mailbox, connection: AsyncConnection
) -> None:
    answer = await client.post("/v1/signups", json=ADA)
    assert answer.status_code == 202, answer.text
    body = answer.json()
    (reference,) = body["jobs"]
    assert answer.headers["location"] == f"/v1/jobs/{reference['id']}" == reference["links"]["self"]
    assert answer.headers["retry-after"] == "1"
    assert (reference["task"], reference["state"]) == ("send_welcome", "pending")
    assert (
        await connection.scalar(text("select email from users where id = :id"), {"id": body["id"]}) == "ada@example.com"
    )

    (job,) = await work(reference["id"])

    assert job.state is State.SUCCEEDED, job.errors
    (mail,) = mailbox.mails
    assert mail["To"] == "ada@example.com"
    assert mail["Message-ID"] == f"<{job.id}@example.com>" == job.result["message_id"]
    shown = (await client.get(answer.headers["location"])).json()
    assert (shown["state"], shown["result"]["to"]) == ("succeeded", "ada@example.com")


async def test_an_address_can_sign_up_once(client: httpx2.AsyncClient, connection: AsyncConnection) -> None:
    answers = await asyncio.gather(*(client.post("/v1/signups", json=ADA) for _ in range(5)))
    assert sorted(answer.status_code for answer in answers) == [202, 409, 409, 409, 409]
    refused = next(answer for answer in answers if answer.status_code == 409)
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json()["status"] == 409
    assert await connection.scalar(text("select count(*) from outbox.job")) == 1


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"email": "no address", "name": "Ada"},
        {"email": "ada@example.com", "name": " "},
        {"email": "ada@example.com", "name": "Ada\r\nBcc: everybody@example.com"},
        {"email": "ada@example.com", "name": "\ud800"},
        {"email": "ada@example.com", "name": "\0"},
        {"email": "ada@example.com", "name": "a" * 201},
    ],
)
async def test_nonsense_is_refused(
    client: httpx2.AsyncClient, body: dict[str, str], connection: AsyncConnection
) -> None:
    content = json.dumps(body)  # escaped, unlike what the client makes of it, so that a lone surrogate gets through
    answer = await client.post("/v1/signups", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert await connection.scalar(text("select count(*) from outbox.job")) == 0


async def test_a_mail_that_is_refused_for_good_is_not_sent_again(
    client: httpx2.AsyncClient, work: Work, mailbox: Mailbox
) -> None:
    mailbox.answer = "550 nobody here"
    answer = await client.post("/v1/signups", json=ADA)
    (job,) = await work(answer.json()["jobs"][0]["id"])
    assert (job.state, job.attempt) == (State.FAILED, 1)
    assert "HardBounce" in job.errors[-1]["type"]
    assert "nobody here" not in job.errors[-1]["message"]


async def test_a_queue_that_is_full_is_answered_with_503_and_nothing_is_stored(
    client: httpx2.AsyncClient, connection: AsyncConnection
) -> None:
    await queue.set_ceiling(connection, "mail", 0)
    answer = await client.post("/v1/signups", json=ADA)
    assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
    assert answer.json()["queue"] == "mail"
    assert int(answer.headers["retry-after"]) > 0
    assert await connection.scalar(text("select count(*) from users")) == 0
    await queue.set_ceiling(connection, "mail", 1)
    assert (await client.post("/v1/signups", json=ADA)).status_code == 202
