"""Orders: the order and everything that follows from it, or nothing."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any
from uuid import UUID

import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection
from standardwebhooks import Webhook
from starlette.responses import Response

from api.database import sessions
from api.handlers.inventory import take_from_stock
from api.settings import Settings, configure
from outbox import State
from tests.service.conftest import SECRET, Work
from tests.service.servers import Mailbox, Receiver, serving

ORDER = {
    "email": "ada@example.com",
    "lines": [
        {"sku": "TEA", "quantity": 2, "unit_price_cents": 1250},
        {"sku": "CUP", "quantity": 1, "unit_price_cents": 999},
        {"sku": "TEA", "quantity": 3, "unit_price_cents": 1000},
    ],
}


async def order(client: httpx2.AsyncClient) -> tuple[str, dict[str, str]]:
    """Place an order; give its id and task → job id."""
    answer = await client.post("/v1/orders", json=ORDER)
    assert answer.status_code == 202, answer.text
    body = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{body['jobs'][0]['id']}"
    return body["id"], {job["task"]: job["id"] for job in body["jobs"]}


async def stock(connection: AsyncConnection) -> dict[str, int]:
    """What is in stock."""
    return {row.sku: row.available for row in await connection.execute(text("select sku, available from stock"))}


async def test_everything_that_follows_from_an_order_happens(
    client: httpx2.AsyncClient, work: Work, mailbox: Mailbox, receiver: Receiver, connection: AsyncConnection
) -> None:
    await connection.execute(text("insert into stock values ('TEA', 100)"))
    id, jobs = await order(client)
    assert list(jobs) == ["send_receipt", "announce_order", "take_from_stock", "record_order"]

    done = await work(*jobs.values())

    assert {job.task: job.state.value for job in done} == dict.fromkeys(jobs, "succeeded")
    (mail,) = mailbox.mails
    assert (mail["To"], mail["Message-ID"]) == ("ada@example.com", f"<{jobs['send_receipt']}@example.com>")
    assert "Total: 64.99" in mail.get_content()
    assert await stock(connection) == {"TEA": 95, "CUP": -1}
    (event,) = receiver.to("/analytics")
    assert event.headers["webhook-id"] == jobs["record_order"]
    assert "ada" not in event.body.decode()

    (delivery,) = receiver.to("/warehouse")
    assert delivery.headers["webhook-id"] == jobs["announce_order"]
    announced = Webhook(SECRET).verify(delivery.body, delivery.headers)
    assert announced["data"]["order_id"] == id
    assert announced["data"]["lines"][0] == {"sku": "TEA", "quantity": 2}


async def test_stock_is_reduced_in_the_transaction_that_ends_the_job(
    client: httpx2.AsyncClient, work: Work, connection: AsyncConnection
) -> None:
    id, jobs = await order(client)
    await work(jobs["take_from_stock"])
    transactions = await connection.execute(
        text(
            "select xmin::text from stock union select xmin::text from stock_movements"
            " union select xmin::text from outbox.finished_job where id = :id"
        ),
        {"id": jobs["take_from_stock"]},
    )
    assert len(transactions.all()) == 1

    async with sessions.begin() as session:
        again = take_from_stock.options(max_attempts=1).enqueue(session, UUID(id))
    (second,) = await work(again.id)
    assert second.state is State.FAILED
    assert await stock(connection) == {"TEA": -5, "CUP": -1}


async def test_a_handler_that_fails_leaves_nothing_behind(
    client: httpx2.AsyncClient, work: Work, connection: AsyncConnection
) -> None:
    await connection.execute(text("alter table stock add constraint never check (available > 0)"))
    id, _ = await order(client)
    async with sessions.begin() as session:
        once = take_from_stock.options(max_attempts=1).enqueue(session, UUID(id))
    (job,) = await work(once.id)
    assert job.state is State.FAILED
    assert await connection.scalar(text("select count(*) from stock_movements")) == 0


async def test_a_failing_commit_is_never_answered_with_success(
    client: httpx2.AsyncClient, connection: AsyncConnection
) -> None:
    for statement in (
        "create function refuse() returns trigger language plpgsql as $$ begin raise 'secret detail'; end $$",
        """create constraint trigger refuse after insert on orders
           deferrable initially deferred for each row execute function refuse()""",
    ):
        await connection.execute(text(statement))
    answer = await client.post("/v1/orders", json=ORDER)
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert "secret" not in answer.text
    assert "location" not in answer.headers
    assert (
        await connection.scalar(text("select (select count(*) from orders) + (select count(*) from outbox.job)")) == 0
    )


@pytest.mark.parametrize(
    ("status", "retry_after"),
    [
        (429, lambda: "1"),
        (503, lambda: format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)),
    ],
)
async def test_the_warehouse_is_left_alone_as_long_as_it_asks(
    client: httpx2.AsyncClient, work: Work, receiver: Receiver, status: int, retry_after: Any
) -> None:
    receiver.answers = [Response(status_code=status, headers={"retry-after": retry_after()})]
    async with sessions.begin() as session:  # alone, so that the answer goes to the warehouse
        job_id = await _announce_only(client, session)
    (job,) = await work(job_id)
    assert job.state is State.SUCCEEDED, job.errors
    assert job.attempt == 1, "the pause was charged as an attempt"
    first, second = receiver.to("/warehouse")
    assert first.headers["webhook-id"] == second.headers["webhook-id"] == str(job.id)
    assert int(second.headers["webhook-timestamp"]) > int(first.headers["webhook-timestamp"])
    Webhook(SECRET).verify(second.body, second.headers)
    assert (job.run_at - job.created_at).total_seconds() >= 0.9


async def _announce_only(client: httpx2.AsyncClient, session: Any) -> str:
    _, jobs = await order(client)
    await session.execute(text("delete from outbox.live_job where task <> 'announce_order'"))
    return jobs["announce_order"]


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        (Response(status_code=410), State.CANCELLED),
        (Response(status_code=404), State.FAILED),
        (Response(status_code=302, headers={"location": "http://127.0.0.1:1/"}), State.FAILED),
    ],
)
async def test_a_warehouse_that_will_never_take_it_is_not_asked_again(
    client: httpx2.AsyncClient, work: Work, receiver: Receiver, answer: Response, state: State
) -> None:
    receiver.answers = [answer]
    async with sessions.begin() as session:
        job_id = await _announce_only(client, session)
    (job,) = await work(job_id)
    assert job.state is state
    assert len(receiver.deliveries) == 1


async def test_without_a_warehouse_nobody_is_told(
    client: httpx2.AsyncClient, work: Work, settings: Settings, receiver: Receiver
) -> None:
    configure(settings.model_copy(update={"warehouse_url": None, "analytics_url": None}))
    _, jobs = await order(client)
    done = await work(jobs["announce_order"], jobs["record_order"])
    assert {job.state for job in done} == {State.CANCELLED}
    assert receiver.deliveries == []


async def test_what_was_answered_over_a_real_network_is_committed(app: FastAPI, connection: AsyncConnection) -> None:
    async with serving(app, lifespan="off") as url, httpx2.AsyncClient(base_url=url) as client:
        id, jobs = await order(client)
        assert await connection.scalar(text("select count(*) from orders where id = :id"), {"id": id}) == 1
        for job in jobs.values():
            assert (await client.get(f"/v1/jobs/{job}")).json()["state"] == "pending"


@pytest.mark.parametrize(
    "change",
    [
        {"lines": []},
        {"lines": [{"sku": "=cmd()", "quantity": 1, "unit_price_cents": 1}]},
        {"lines": [{"sku": "TEA", "quantity": 0, "unit_price_cents": 1}]},
        {"lines": [{"sku": "TEA", "quantity": 1, "unit_price_cents": 1e99}]},
        {"email": "ada@"},
    ],
)
async def test_nonsense_is_refused(client: httpx2.AsyncClient, change: dict[str, Any]) -> None:
    answer = await client.post("/v1/orders", json={**ORDER, **change})
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["errors"]
