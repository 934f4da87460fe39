"""A mailing is a batch: everybody gets a mail, and the shop is told how it went."""

from uuid import uuid4

import httpx2
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from tests.service.conftest import Work
from tests.service.servers import Mailbox

NEWS = {"subject": "New tea", "text": "It is green."}


async def signed_up(connection: AsyncConnection, count: int) -> None:
    people = [{"id": uuid4(), "email": f"{n}@example.com", "name": f"N{n}"} for n in range(1, count + 1)]
    await connection.execute(text("insert into users (id, email, name) values (:id, :email, :name)"), people)


async def test_everybody_gets_it_and_the_shop_is_told(
    client: httpx2.AsyncClient, work: Work, mailbox: Mailbox, connection: AsyncConnection
) -> None:
    await signed_up(connection, 12)
    answer = await client.post("/v1/mailings", json=NEWS)
    assert answer.status_code == 202, answer.text
    body = answer.json()
    assert (body["name"], body["total"]) == ("New tea", 12)
    assert answer.headers["location"] == body["links"]["self"] == f"/v1/batches/{body['id']}"
    waiting = (await client.get(body["links"]["self"])).json()
    assert (waiting["done"], waiting["succeeded"]) == (False, 0)

    mails = await connection.scalars(text("select id from outbox.job where task = 'send_news'"))
    await work(*mails.all())
    reports = await connection.scalars(text("select id from outbox.job where task = 'report_mailing'"))
    await work(*reports.all())

    done = (await client.get(body["links"]["self"])).json()
    assert (done["done"], done["succeeded"], done["failed"], done["cancelled"]) == (True, 12, 0, 0)
    assert "cancel" not in {name for name, link in done["links"].items() if link}
    to = sorted(mail["To"] for mail in mailbox.mails)
    assert to == sorted([*(f"{n}@example.com" for n in range(1, 13)), "shop@example.com"])
    [told] = [mail for mail in mailbox.mails if mail["To"] == "shop@example.com"]
    assert "12 of 12 mails were sent" in told.get_content()


async def test_a_mailing_can_be_cancelled(
    client: httpx2.AsyncClient, connection: AsyncConnection, mailbox: Mailbox
) -> None:
    await signed_up(connection, 5)
    body = (await client.post("/v1/mailings", json=NEWS)).json()
    cancelled = (await client.post(body["links"]["cancel"])).json()
    assert (cancelled["done"], cancelled["cancelled"]) == (True, 5)
    assert mailbox.mails == []


async def test_a_batch_that_is_not_there_is_404(client: httpx2.AsyncClient) -> None:
    for answer in (await client.get(f"/v1/batches/{uuid4()}"), await client.post(f"/v1/batches/{uuid4()}/cancel")):
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")


async def test_without_anybody_there_is_no_mailing(client: httpx2.AsyncClient) -> None:
    assert (await client.post("/v1/mailings", json=NEWS)).status_code == 409


@pytest.mark.parametrize("change", [{"subject": ""}, {"subject": "a\nBcc: b@example.com"}, {"text": ""}])
async def test_nonsense_is_refused(client: httpx2.AsyncClient, change: dict[str, str]) -> None:
    assert (await client.post("/v1/mailings", json=NEWS | change)).status_code == 422
