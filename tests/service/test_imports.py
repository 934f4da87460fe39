"""Imports of customers: good rows are stored, bad ones are told, and a second run changes nothing."""

from typing import Any
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from api import imports
from api.database import sessions
from api.handlers.imports import import_customers
from outbox import Job, State
from tests.service.conftest import Work

GOOD = b"email,name,country\r\n"


async def upload(client: httpx2.AsyncClient, content: bytes) -> dict[str, Any]:
    """Upload a file; give the answer."""
    answer = await client.post("/v1/imports", files={"file": ("customers.csv", content, "text/csv")})
    assert answer.status_code == 202, answer.text
    body: dict[str, Any] = answer.json()
    assert body["size"] == len(content)
    return body


async def run(client: httpx2.AsyncClient, work: Work, content: bytes) -> Job:
    """Upload a file and import it."""
    (job,) = await work((await upload(client, content))["jobs"][0]["id"])
    return job


async def customers(connection: AsyncConnection) -> dict[str, tuple[str, str | None]]:
    """All customers."""
    rows = await connection.execute(text("select email, name, country from customers"))
    return {row.email: (row.name, row.country) for row in rows}


async def test_good_rows_are_stored_and_bad_ones_told(
    client: httpx2.AsyncClient, work: Work, connection: AsyncConnection
) -> None:
    lines = [
        b"\xef\xbb\xbfname,email,country,remark",  # with the mark that spreadsheets put in front
        b"Ada,Ada@Example.com,GB,likes tea",
        b'"Hopper, Grace",grace@example.com,,',
        b"",
        b"Nobody,no address,GB,",
        b",empty@example.com,GB,",
        b"Short,short@example.com",
        b"Long,long@example.com,GB,,,",
        b"Latin \xe9,latin@example.com,FR,",
        b"N\0L,nul@example.com,FR,",
        b"Wrong,wrong@example.com,France,",
        b'"Two\r\nlines",two@example.com,DE,',
        "Zoë,zoe@example.com,NL,".encode(),
    ]
    job = await run(client, work, b"\r\n".join(lines))
    assert job.state is State.SUCCEEDED, job.errors
    result = job.result
    assert (result["total"], result["succeeded"], result["failed"]) == (11, 4, 7)
    assert [(error["line"], error["field"]) for error in result["errors"]] == [
        (5, "email"),
        (6, "name"),
        (7, None),
        (8, None),
        (9, "name"),
        (10, "name"),
        (11, "country"),
    ]
    assert result["errors"][1]["reason"] == "is empty"
    assert await customers(connection) == {
        "ada@example.com": ("Ada", "GB"),
        "grace@example.com": ("Hopper, Grace", None),
        "two@example.com": ("Two\r\nlines", "DE"),
        "zoe@example.com": ("Zoë", "NL"),
    }
    assert job.progress is not None
    assert job.progress["done"] == job.progress["total"] == len(b"\r\n".join(lines))


async def test_the_last_line_about_a_customer_counts_and_a_second_run_changes_nothing(
    client: httpx2.AsyncClient, work: Work, connection: AsyncConnection
) -> None:
    rows = b"".join(b"c%d@example.com,Name %d,DE\r\n" % (number % 1500, number) for number in range(4000))
    body = await upload(client, GOOD + rows)
    (job,) = await work(body["jobs"][0]["id"])
    expected = {f"c{n % 1500}@example.com": (f"Name {n}", "DE") for n in range(4000)}
    assert job.state is State.SUCCEEDED, job.errors
    assert (job.result["total"], job.result["failed"], await customers(connection)) == (4000, 0, expected)

    await run(client, work, GOOD + b"c7@example.com,Newer,FR\r\n")
    async with sessions.begin() as session:
        again = import_customers.enqueue(session, UUID(body["id"]))
    (repeated,) = await work(again.id)
    assert repeated.result == job.result
    assert await customers(connection) == {**expected, "c7@example.com": ("Newer", "FR")}, "an older file won"


async def test_no_more_than_a_hundred_errors_are_told(client: httpx2.AsyncClient, work: Work) -> None:
    job = await run(client, work, GOOD + b"x,y,z\r\n" * 1200)
    assert (job.result["total"], job.result["failed"], len(job.result["errors"])) == (1200, 1200, 100)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"name;email\nAda;ada@example.com\n",
        b"email,email,name\n",
        "email,name\nada@example.com,Ada\n".encode("utf-16"),
        b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 100,
        b"x" * 200_000,
    ],
)
async def test_what_is_no_file_of_customers_fails_once_and_clearly(
    client: httpx2.AsyncClient, work: Work, content: bytes
) -> None:
    job = await run(client, work, content)
    assert (job.state, job.attempt) == (State.FAILED, 1)
    assert job.errors[-1]["type"].endswith("ImportRejected")


async def test_a_field_without_an_end_spoils_rows_and_not_the_import(
    client: httpx2.AsyncClient, work: Work, connection: AsyncConnection
) -> None:
    job = await run(client, work, GOOD + b'ada@example.com,Ada,GB\n"never ending,' + b"x\n" * 100_000)
    assert job.state is State.SUCCEEDED, job.errors
    assert job.result["succeeded"] == 1
    assert job.result["failed"] >= 1
    assert await customers(connection) == {"ada@example.com": ("Ada", "GB")}


@pytest.mark.parametrize("announced", [True, False])
async def test_too_large_an_upload_is_refused(
    client: httpx2.AsyncClient, connection: AsyncConnection, announced: bool
) -> None:
    head = b'--b\r\ncontent-disposition: form-data; name="file"; filename="big.csv"\r\n\r\n'
    headers = {"content-type": "multipart/form-data; boundary=b"}
    if announced:
        headers["content-length"] = str(imports.MAX_UPLOAD + 1)

    async def body() -> Any:
        yield head
        for _ in range(imports.MAX_UPLOAD // 1_048_576 + 1):
            yield b"x" * 1_048_576

    answer = await client.post("/v1/imports", content=body(), headers=headers)
    assert answer.status_code == 413, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert await connection.scalar(text("select count(*) from imports")) == 0


async def test_an_upload_without_a_file_is_refused(client: httpx2.AsyncClient) -> None:
    answer = await client.post("/v1/imports", data={"file": "text"})
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")


async def test_an_import_that_was_broken_off_is_resumed_where_it_was(
    client: httpx2.AsyncClient, work: Work, connection: AsyncConnection
) -> None:
    for statement in (
        "create table written (email text)",
        """
        create function watch() returns trigger language plpgsql as $$
        begin
            if new.email = 'c3000@example.com' then raise 'no room'; end if;
            insert into written values (new.email);
            return new;
        end $$
        """,
        "create trigger watch before insert on customers for each row execute function watch()",
    ):
        await connection.execute(text(statement))
    rows = b"".join(b"c%d@example.com,Name,DE\r\n" % number for number in range(4000))
    body = await upload(client, GOOD + rows + b"nobody,,\r\n")
    id = body["jobs"][0]["id"]
    await connection.execute(text("update outbox.live_job set max_attempts = 1"))
    (failed,) = await work(id)
    assert failed.state is State.FAILED
    assert failed.checkpoint["total"] == 2000

    for statement in (
        "truncate written",
        """
        create or replace function watch() returns trigger language plpgsql as $$
        begin
            insert into written values (new.email);
            return new;
        end $$
        """,
    ):
        await connection.execute(text(statement))
    await client.post(f"/v1/jobs/{id}/retry")
    (job,) = await work(id)
    assert (job.state, job.result["total"], job.result["succeeded"], job.result["failed"]) == (
        State.SUCCEEDED, 4001, 4000, 1
    )  # fmt: skip
    assert len(await customers(connection)) == 4000
    assert await connection.scalar(text("select count(*) from written")) == 2000, (
        "rows that were done were written again"
    )
