"""The status API in this service, and that every error is a problem."""

from typing import Any
from uuid import uuid4

import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from tests.service.conftest import Work
from tests.service.servers import Mailbox

JSON = {"content-type": "application/json"}
ADA = {"email": "ada@example.com", "name": "Ada"}

UNKNOWN = "01890a5d-ac96-774b-bcce-b302099a8057"


async def signed_up(client: httpx2.AsyncClient, **changes: str) -> dict[str, Any]:
    """Sign up; give the reference to the job."""
    reference: dict[str, Any] = (await client.post("/v1/signups", json=ADA | changes)).json()["jobs"][0]
    return reference


async def test_a_waiting_job_can_be_cancelled_and_run_after_all(
    client: httpx2.AsyncClient, work: Work, mailbox: Mailbox
) -> None:
    links = (await signed_up(client))["links"]
    cancelled = await client.post(links["cancel"])
    assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
    again = await client.post(links["cancel"])
    assert (again.status_code, again.headers["content-type"]) == (409, "application/problem+json")
    assert again.json()["state"] == "cancelled"
    assert (await client.post(cancelled.json()["links"]["retry"])).json()["state"] == "pending"
    await work(cancelled.json()["id"])
    assert len(mailbox.mails) == 1


async def test_jobs_are_listed(client: httpx2.AsyncClient) -> None:
    reference = await signed_up(client)
    listed = (await client.get("/v1/jobs", params={"task": "send_welcome", "state": "pending"})).json()
    assert [job["id"] for job in listed["data"]] == [reference["id"]]
    assert (await client.get("/v1/jobs", params={"task": "send_receipt"})).json()["data"] == []


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", f"/v1/jobs/{UNKNOWN}", 404),
        ("POST", f"/v1/jobs/{UNKNOWN}/cancel", 404),
        ("GET", "/v1/jobs/none", 422),
        ("GET", "/v1/jobs?limit=1000000000", 422),
        ("GET", "/nowhere", 404),
        ("DELETE", "/v1/orders", 405),
        ("GET", "/v1/signups", 405),
        ("POST", "/v1/orders", 422),
    ],
)
async def test_every_error_is_a_problem(client: httpx2.AsyncClient, method: str, path: str, status: int) -> None:
    answer = await client.request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == status
    if status == 405:
        assert answer.headers["allow"] == "POST"


async def test_broken_json_and_too_much_of_it_are_problems(client: httpx2.AsyncClient) -> None:
    for content, status in ((b"{", 422), (b"[" * 100_000, 400), (b'"\xff"', 400), (b" " * 2_000_000, 413)):
        answer = await client.post("/v1/orders", content=content, headers={"content-type": "application/json"})
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), content[:9]


async def test_no_body_is_too_deep_or_too_large_for_any_route(app: FastAPI, client: httpx2.AsyncClient) -> None:
    asked = 0
    for path, methods in app.openapi()["paths"].items():
        address = path.replace("{action}", "retry").replace("{scope}", "queue").replace("{job_id}", str(uuid4()))
        for method in methods.keys() - {"get"}:
            for content in (b"[" * 100_000, b'{"a":' * 100_000, b'{"name": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"):
                answer = await client.request(method, address, content=content, headers=JSON)
                assert answer.status_code < 500, (path, content[:9])
            # Who reads a body reads no more of it than is allowed.
            large = await client.request(method, address, content=b" " * 10_000_000, headers=JSON)
            assert large.status_code < 500, path
            if "requestBody" in methods[method] and path != "/v1/imports":
                assert large.status_code == 413, path
                asked += 1
    assert asked > 8


async def test_what_goes_wrong_inside_stays_inside(client: httpx2.AsyncClient, connection: AsyncConnection) -> None:
    await connection.execute(text("drop table users"))
    answer = await client.post("/v1/signups", json=ADA)
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    for inner in ("asyncpg", "users", "Traceback", "ada@"):
        assert inner not in answer.text


async def test_the_description_names_every_path_and_its_errors(app: FastAPI) -> None:
    paths = app.openapi()["paths"]
    assert {"/v1/signups", "/v1/orders", "/v1/reports", "/v1/imports", "/v1/jobs", "/livez", "/readyz"} <= set(paths)
    assert "application/problem+json" in paths["/v1/orders"]["post"]["responses"]["422"]["content"]
    operations = [each["operationId"] for path in paths.values() for each in path.values()]
    assert len(operations) == len(set(operations))


async def test_jobs_are_retried_by_filter(client: httpx2.AsyncClient) -> None:
    ids = [(await signed_up(client, email=f"{n}@example.com"))["id"] for n in range(3)]
    for id in ids:
        await client.post(f"/v1/jobs/{id}/cancel")
    wanted = {"filter": {"task": ["send_welcome"], "state": ["cancelled"]}}
    dry = await client.post("/v1/jobs/bulk/retry", json={**wanted, "dry_run": True})
    assert (dry.status_code, dry.json()["changed"], dry.json()["dry_run"]) == (200, 3, True)
    done = await client.post("/v1/jobs/bulk/retry", json={**wanted, "limit": 2})
    assert (done.json()["changed"], done.json()["next_cursor"] is not None) == (2, True)
    states = [(await client.get(f"/v1/jobs/{id}")).json()["state"] for id in ids]
    assert states == ["pending", "pending", "cancelled"]
    refused = await client.post("/v1/jobs/bulk/retry", json={"filter": {"stat": ["failed"]}})
    assert (refused.status_code, refused.json()["errors"][0]["path"]) == (422, "$.body.filter.stat")
