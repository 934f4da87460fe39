"""Whatever is sent to the API, in an application that bounds nothing: no 500, nothing of the inside in an answer."""

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any
from urllib.parse import quote

import asyncpg
import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from outbox import Outbox
from outbox.dashboard import outbox_dashboard
from outbox.fastapi import Principal, api, outbox_router, problem_handlers, route
from outbox.keys import Scope
from tests.factories import new_id, plant

PROBLEM = "application/problem+json"
JSON = {"Content-Type": "application/json"}

TEXTS = [
    "' or 1=1 --",
    "'; drop table orders; --",
    "\\",
    "%",
    "_%",
    '{"a": {"$ne": null}}',
    "../../etc/passwd",
    "${7*7}{{7*7}}",
    "<script>alert(1)</script>",
    "\u202eevil",
    "\x1b[2J",
    "a\nb",
    "\x00",
    "x" * 5000,
    "0000-00-00T00:00:00Z",
    "0001-01-01T00:00:00+23:59",
    "9999-12-31T23:59:59-23:59",
]
NUMBERS = ["1e99", "-1", "0", str(10**9), str(10**30), "NaN", "Infinity", "-0.0", "0x10", "١٢", "9" * 5000]


@pytest.fixture
def app(sessions: async_sessionmaker[AsyncSession]) -> FastAPI:
    outbox = Outbox()

    @outbox.task()
    async def noop(n: int = 0) -> int:
        return n

    @outbox.task()
    async def anything(x: object = None) -> None: ...

    def who() -> Principal:
        return Principal("tester", frozenset(Scope))

    app = FastAPI()
    problem_handlers(app)
    app.include_router(outbox_router(outbox, sessions, access=who))
    app.include_router(outbox_dashboard(outbox, sessions, access=who))
    return app


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url="http://shop.test") as client:
        yield client


@pytest.fixture
async def inside(db: asyncpg.Connection) -> re.Pattern[str]:
    """What no answer to a wrong request may hold: what the inside is made of, and where it is."""
    names = await db.fetch("select relname as name from pg_class where relnamespace = 'outbox'::regnamespace")
    words = ["asyncpg", "sqlalchemy", "psycopg", "Traceback", "pydantic", "site-packages", ".py", "pg_catalog", "[SQL"]
    words += [f"outbox.{each['name']}" for each in names] + [f'relation "{each["name"]}"' for each in names]
    return re.compile("|".join(map(re.escape, words)), re.IGNORECASE)


def operations(app: FastAPI) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in app.openapi()["paths"].items():
        for method, operation in methods.items():
            # A stream is asked for as a job is, and has no end.
            if operation["operationId"] != "jobs_events":
                yield path, method.upper(), operation


def good(name: str) -> str:
    return {"action": "retry", "scope": "queue", "name": "x"}.get(name, str(new_id()))


# Bodies.


def json_routes(app: FastAPI) -> list[tuple[str, str]]:
    return [(path, method) for path, method, operation in operations(app) if "requestBody" in operation]


async def test_a_body_that_is_too_large_is_refused_before_it_is_read(app: FastAPI, client: httpx2.AsyncClient) -> None:
    chunk, read = b" " * 65_536, 0

    async def without_end() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += len(chunk)
            yield chunk

    routes = json_routes(app)
    assert len(routes) > 5
    for path, method in routes:
        address = re.sub(r"{(\w+)}", lambda name: good(name[1]), path)
        headers = {"Content-Type": "application/json"}
        read = 0
        # Announced, it is not read at all; else until it has become too large.
        announced = await client.request(
            method, address, content=without_end(), headers=headers | {"Content-Length": "9" * 30}
        )
        assert read <= len(chunk)
        read = 0
        silent = await client.request(method, address, content=without_end(), headers=headers)
        assert route.MAX_BODY < read <= route.MAX_BODY + 2 * len(chunk)
        for answer in (announced, silent):
            assert (answer.status_code, answer.headers["content-type"]) == (413, PROBLEM), path


async def test_a_body_that_does_not_come_is_not_waited_for(
    app: FastAPI, client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(route, "PATIENCE", 0.05)

    async def never_whole() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    for path, method in [*json_routes(app), ("/outbox/queues/pause", "POST")]:
        address = re.sub(r"{(\w+)}", lambda name: good(name[1]), path)
        answer = await client.request(method, address, content=never_whole(), headers=JSON)
        assert answer.status_code == 408, path
        assert answer.headers["connection"] == "close", path


@pytest.mark.parametrize(
    "body",
    [
        b'{"task": "anything", "arguments": {"x": %s}}' % (b"[" * 100_000 + b"]" * 100_000),
        b'{"task": "anything", "arguments": {"x": %s}}' % (b'{"a":' * 900 + b"1" + b"}" * 900),
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"task": "noop", "arguments": {"n": %s}}' % (b"9" * 5000),
        b'{"task": "noop", "arguments": {"n": 1e999}}',
        b'{"task": "noop", "arguments": {"n": -1e99}}',
        b'{"task": "anything", "arguments": {"x": NaN}}',
        b'{"task": "anything", "arguments": {"x": "\\u0000"}}',
        b'{"task": "anything", "arguments": {"x": "\\ud800"}}',
        b'{"task": "anything", "arguments": {"\\u0000": 1}}',
        b'{"task": "noop", "delay": 1e99}',
        b'{"task": "noop", "delay": -1}',
        b'{"task": "noop", "priority": 1000000000}',
        b'{"task": "noop", "max_attempts": -1}',
        b'{"task": "noop", "tags": ["\\ud800"]}',
        b'{"task": "noop", "run_at": "0000-00-00T00:00:00Z"}',
        b'{"task": "noop", "run_at": "9999-12-31T23:59:59-23:59"}',
        b'{"task": "\xff\xfe"}',
        b"null",
        b"",
        b"\x00",
    ],
    ids=lambda body: repr(body[:50]),
)
async def test_a_body_that_makes_no_sense_is_refused(
    client: httpx2.AsyncClient, inside: re.Pattern[str], db: asyncpg.Connection, body: bytes
) -> None:
    many = b'{"jobs": [%s]}' % body
    for path, content in (("/v1/jobs", body), ("/v1/jobs/batch", many), ("/v1/jobs/bulk/retry", body)):
        answer = await client.post(path, content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code in (400, 422), answer.text[:500]
        assert answer.headers["content-type"] == PROBLEM
        assert not inside.search(answer.text)
        assert len(answer.content) < 10_000
    assert await db.fetchval("select count(*) from outbox.live_job") == 0


# Parameters.


def hostile(app: FastAPI) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Requests with one hostile value each, in every place of every route."""
    for path, method, operation in operations(app):
        body = {"priority": 1} if operation["operationId"] == "jobs_change" else None
        for parameter in operation.get("parameters", []):
            name, where = parameter["name"], parameter["in"]
            for value in (*TEXTS, *NUMBERS):
                options: dict[str, Any] = {"json": body} if body else {}
                filled = path
                if where == "query":
                    options["params"] = {name: value}
                elif where == "header":
                    options["headers"] = {
                        name: value.encode(errors="replace").replace(b"\n", b" ").replace(b"\x00", b" ")
                    }
                elif where == "path":
                    filled = path.replace(f"{{{name}}}", quote(value, safe=""))
                yield method, re.sub(r"{(\w+)}", lambda found: good(found[1]), filled), options


async def test_no_value_of_a_parameter_makes_it_fail_or_tell_of_the_inside(
    app: FastAPI, client: httpx2.AsyncClient, engine: AsyncEngine, inside: re.Pattern[str]
) -> None:
    await plant(engine)
    asked = refused = 0
    for method, address, options in hostile(app):
        answer = await client.request(method, address, **options)
        asked += 1
        assert answer.status_code < 500, (method, address, options, answer.text)
        if answer.status_code >= 400:
            refused += 1
            assert answer.headers["content-type"] in (PROBLEM, "application/json"), (method, address)
            assert not inside.search(answer.text), (method, address, options, answer.text)
    assert asked > 1000
    assert refused > asked / 2


async def test_a_page_has_a_size(app: FastAPI, client: httpx2.AsyncClient) -> None:
    lists = [
        path
        for path, method, operation in operations(app)
        if method == "GET" and any(each["name"] == "limit" for each in operation.get("parameters", []))
    ]
    assert {"/v1/jobs", "/v1/batches", "/v1/audit"} <= set(lists)
    for path in lists:
        assert (await client.get(path, params={"limit": 200})).status_code == 200
        for limit in ("201", *NUMBERS):
            assert (await client.get(path, params={"limit": limit})).status_code == 422, (path, limit)


# The database.


async def test_who_reads_does_not_keep_the_database_busy(
    client: httpx2.AsyncClient, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert api.PATIENCE <= 5
    monkeypatch.setattr(api, "PATIENCE", 0.1)
    async with db.transaction():
        await db.execute("lock table outbox.live_job")
        for path in ("/v1/jobs", "/v1/queues", f"/v1/jobs/{new_id()}/explain"):
            answer = await client.get(path)
            assert (answer.status_code, answer.headers["content-type"]) == (503, PROBLEM), path
            assert int(answer.headers["retry-after"]) > 0
    # The connection is as it was: what changes something may take its time.
    id = (await client.post("/v1/jobs", json={"task": "noop"})).json()["id"]
    assert (await client.post(f"/v1/jobs/{id}/cancel")).status_code == 200
    assert (await client.get("/v1/jobs")).status_code == 200


async def test_a_database_that_is_not_as_it_should_be_is_nobodys_business(
    app: FastAPI, client: httpx2.AsyncClient, db: asyncpg.Connection, inside: re.Pattern[str]
) -> None:
    for table in ("live_job", "audit", "queue", "batch", "schedule", "job_limit", "worker"):
        await db.execute(f"alter table outbox.{table} rename to gone_{table}")
    failed = 0
    for path, method, operation in operations(app):
        body = {"priority": 1, "ids": [good("id")]} if operation["operationId"] == "jobs_bulk" else {"task": "noop"}
        answer = await client.request(method, re.sub(r"{(\w+)}", lambda name: good(name[1]), path), json=body)
        failed += answer.status_code == 500
        if answer.status_code >= 400:
            assert answer.headers["content-type"] == PROBLEM, path
            assert not inside.search(answer.text), (path, answer.text)
    assert failed > 10


# Code.


@pytest.mark.parametrize(
    "task", ["os.system", "__import__", "builtins.eval", "subprocess:run", "antigravity", "this", "noop.__globals__"]
)
async def test_the_name_of_a_task_is_looked_up_and_never_imported(
    client: httpx2.AsyncClient, db: asyncpg.Connection, task: str
) -> None:
    before = set(sys.modules)
    for path, body in (
        ("/v1/jobs", {"task": task, "arguments": {"command": "true"}}),
        ("/v1/jobs/batch", {"jobs": [{"task": "noop"}, {"task": task}]}),
    ):
        answer = await client.post(path, json=body)
        assert (answer.status_code, answer.headers["content-type"]) == (422, PROBLEM)
        assert "no such task" in answer.text
    answer = await client.put("/v1/schedules/nightly", json={"task": task, "cron": "@daily"})
    assert answer.status_code == 422
    assert not loaded(set(sys.modules) - before, (task, "antigravity", "this"))
    assert await db.fetchval("select count(*) from outbox.live_job") == 0


def loaded(modules: Iterable[str], names: Iterable[str]) -> set[str]:
    return {each for each in modules if any(each == name.partition(".")[0] for name in names)}


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "1",
        "[" * 1000,
        "{" * 2000,
        '{"a": %s}' % ("[" * 900 + "]" * 900),
        '{"a": %s}' % ("9" * 1900),
        '{"a": 1e999}',
        '{"a": NaN}',
        '{"a": "\\u0000"}',
        '{"\\u0000": 1}',
        '{"a": "\\ud800"}',
    ],
    ids=lambda arguments: arguments[:20],
)
async def test_what_no_job_can_have_cannot_be_asked_for(client: httpx2.AsyncClient, arguments: str) -> None:
    asked = await client.get("/v1/jobs", params={"arguments": arguments})
    done = await client.post("/v1/jobs/bulk/retry", json={"filter": {"arguments": arguments}})
    assert (asked.status_code, done.status_code) == (422, 422), (asked.text, done.text)
