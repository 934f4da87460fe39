"""Reports: asked for, computed in the background, downloaded."""

from datetime import datetime

import httpx2
import pytest

from api.database import sessions
from api.models import Order, OrderLine
from api.settings import Settings
from outbox import State
from tests.service.conftest import Work

SOLD = (
    ("2026-03-01T00:00:00Z", "TEA", 2, 1000),
    ("2026-03-01T23:59:59.999Z", "TEA", 1, 900),
    ("2026-03-01T12:00:00Z", "CUP", 1, 500),
    ("2026-03-03T00:00:00Z", "TEA", 5, 100),
    ("2026-02-28T23:59:59.999Z", "TEA", 99, 1),
    ("2026-03-04T00:00:00Z", "TEA", 99, 1),
)
EXPECTED = "day,sku,quantity,revenue_cents\r\n2026-03-01,CUP,1,500\r\n2026-03-01,TEA,3,2900\r\n2026-03-03,TEA,5,500\r\n"


async def test_the_report_has_the_right_numbers_and_can_be_downloaded(
    client: httpx2.AsyncClient, work: Work, settings: Settings
) -> None:
    async with sessions.begin() as session:
        for at, sku, quantity, price in SOLD:
            line = OrderLine(position=1, sku=sku, quantity=quantity, unit_price_cents=price)
            moment = datetime.fromisoformat(at)
            session.add(Order(email="ada@example.com", total_cents=0, created_at=moment, lines=[line]))
    answer = await client.post("/v1/reports", json={"first_day": "2026-03-01", "last_day": "2026-03-03"})
    assert answer.status_code == 202, answer.text
    body = answer.json()
    early = await client.get(body["download"])
    assert early.status_code == 409
    assert early.headers["retry-after"] == "1"

    (job,) = await work(body["jobs"][0]["id"])

    assert job.state is State.SUCCEEDED, job.errors
    assert job.result["download"] == body["download"]
    assert (job.result["rows"], job.result["revenue_cents"]) == (3, 3900)
    assert job.progress is not None
    assert (job.progress["done"], job.progress["total"]) == (3, 3)
    file = await client.get(job.result["download"])
    assert (file.status_code, file.text) == (200, EXPECTED)
    assert file.headers["content-type"] == "text/csv; charset=utf-8"
    assert "revenue-2026-03-01-2026-03-03.csv" in file.headers["content-disposition"]
    assert [path.suffix for path in (settings.files_dir / "reports").iterdir()] == [".csv"], (
        "half-written files are left"
    )


@pytest.mark.parametrize(
    ("first_day", "last_day"),
    [("2026-03-02", "2026-03-01"), ("2025-01-01", "2026-12-31"), ("9999-12-31", "9999-12-31"), ("soon", "later")],
)
async def test_nonsense_is_refused(client: httpx2.AsyncClient, first_day: str, last_day: str) -> None:
    answer = await client.post("/v1/reports", json={"first_day": first_day, "last_day": last_day})
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_report_that_does_not_exist_is_not_found(client: httpx2.AsyncClient) -> None:
    answer = await client.get("/v1/reports/00000000-0000-0000-0000-000000000000/download")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
