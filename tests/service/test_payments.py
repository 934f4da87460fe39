"""The payment provider's messages: signed, taken once, and with all that follows from them."""

import json
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection
from standardwebhooks import Webhook

from api.settings import Settings, configure
from tests.service.conftest import SECRET, Work
from tests.service.servers import Mailbox

ORDER = {"email": "ada@example.com", "lines": [{"sku": "TEA", "quantity": 2, "unit_price_cents": 1250}]}
PATH = "/v1/payments/webhook"

OTHER = "whsec_" + "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVoxMjM0NTY="


@pytest.fixture(autouse=True)
def provider(client: httpx2.AsyncClient, settings: Settings) -> None:
    configure(settings.model_copy(update={"payments_secret": SecretStr(SECRET)}))


def paid(order: str) -> dict[str, Any]:
    return {"type": "payment.succeeded", "order_id": order, "paid_at": "2026-03-01T12:00:00Z"}


async def send(client: httpx2.AsyncClient, message: Any, *, id: str = "msg_1", secret: str = SECRET) -> httpx2.Response:
    body, now = json.dumps(message), datetime.now(UTC)
    headers = {
        "webhook-id": id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(secret).sign(id, now, body),
        "content-type": "application/json",
    }
    return await client.post(PATH, content=body, headers=headers)


async def test_a_payment_is_taken_once_however_often_it_is_told(
    client: httpx2.AsyncClient, work: Work, mailbox: Mailbox, connection: AsyncConnection
) -> None:
    order = (await client.post("/v1/orders", json=ORDER)).json()["id"]
    answers = [await send(client, paid(order)) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert [answer.json()["new"] for answer in answers] == [True, False, False]
    assert await connection.scalar(text("select paid_at from orders")) == datetime(2026, 3, 1, 12, tzinfo=UTC)
    thanks = (await connection.scalars(text("select id from outbox.job where task = 'send_thanks'"))).all()
    assert len(thanks) == 1
    await work(*thanks)
    assert [mail["Subject"] for mail in mailbox.mails if "Paid" in mail["Subject"]] == [f"Paid: order {order}"]


async def test_one_that_could_not_be_done_may_be_sent_again(
    client: httpx2.AsyncClient, connection: AsyncConnection
) -> None:
    assert (await send(client, paid(str(uuid4())))).status_code == 404
    order = (await client.post("/v1/orders", json=ORDER)).json()["id"]
    assert (await send(client, paid(order))).json()["new"] is True


async def test_while_the_secret_changes_both_are_heard(client: httpx2.AsyncClient, settings: Settings) -> None:
    both = SecretStr(f"{OTHER},{SECRET}")
    configure(settings.model_copy(update={"payments_secret": both}))
    order = (await client.post("/v1/orders", json=ORDER)).json()["id"]
    for n, secret in enumerate((SECRET, OTHER)):
        assert (await send(client, paid(order), id=f"msg_{n}", secret=secret)).status_code == 200


async def test_who_cannot_sign_is_not_heard(client: httpx2.AsyncClient, connection: AsyncConnection) -> None:
    assert (await send(client, paid(str(uuid4())), secret=OTHER)).status_code == 401
    assert (await client.post(PATH, json=paid(str(uuid4())))).status_code == 401
    assert await connection.scalar(text("select count(*) from outbox.inbox")) == 0


async def test_without_a_secret_the_door_is_closed(client: httpx2.AsyncClient, settings: Settings) -> None:
    configure(settings)
    assert (await send(client, paid(str(uuid4())))).status_code == 404


@pytest.mark.parametrize(
    "message", [{}, [], {"type": "payment.failed"}, {"type": "payment.succeeded", "order_id": "1"}]
)
async def test_what_is_no_message_is_refused(client: httpx2.AsyncClient, message: Any) -> None:
    answer = await send(client, message)
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
