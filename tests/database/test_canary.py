"""What is in arguments, results and errors, and the keys themselves, is nowhere but where it must be.

A real worker, a real server and real requests, good and bad; then everything that was logged, answered and noted is
searched for the words that were put in.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

import asyncpg
import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from outbox import INJECTED, JobContext, Outbox, Retry, State, keys
from outbox.exposition import WorkerCollector, encode
from outbox.fastapi import access, api_keys, outbox_router, problem_handlers
from outbox.fastapi.metrics import outbox_metrics
from outbox.keys import Scope
from tests.database.workers import in_state, working
from tests.factories import new_id, plant
from tests.service.servers import serving

ARGUMENT, RESULT, MESSAGE, KEPT = "canary-argument", "canary-result", "canary-message", "canary-checkpoint"

Sessions = async_sessionmaker[AsyncSession]


@pytest.fixture
def outbox() -> Outbox:
    outbox = Outbox()

    @outbox.task()
    async def good(card: str, *, ctx: JobContext = INJECTED) -> str:
        ctx.keep({"card": KEPT})
        return RESULT

    @outbox.task(retry=Retry(max_attempts=2, delay=lambda _attempt, _exception: 0))
    async def bad(card: str, *, ctx: JobContext = INJECTED) -> None:
        ctx.keep({"card": KEPT})
        raise ValueError(f"{MESSAGE} {card}")

    @outbox.task(retry=Retry(max_attempts=1))
    async def strict(n: int) -> None: ...

    @outbox.task()
    async def unstorable(card: str) -> object:
        return {RESULT: object()}  # which is no JSON

    return outbox


@pytest.fixture
async def sessions(database_url: str) -> AsyncIterator[Sessions]:
    # As docs/http-api.md says. Without it SQLAlchemy itself writes parameters to its logs and into its errors.
    engine = create_async_engine(database_url, hide_parameters=True)
    yield async_sessionmaker(engine, expire_on_commit=False)
    await engine.dispose()


def all_of(records: Iterable[logging.LogRecord]) -> str:
    """Everything that any handler could write of it."""
    form = logging.Formatter("%(name)s %(message)s")
    return "\n".join(form.format(each) + repr(each.__dict__) for each in records)


async def made(sessions: Sessions, *scopes: Scope) -> str:
    async with sessions.begin() as session:
        _, key = await keys.create(session, "tester", scopes)
    return key


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


class Callers:
    """A client for each role. What the roles that must not see the words are told is kept.

    :ivar keys: of each role; ``wrong`` is none.
    """

    def __init__(self, client: httpx2.AsyncClient, keys: Mapping[str, str]) -> None:
        self.client = client
        self.keys = keys
        self.told: list[str] = []

    async def ask(self, role: str, method: str, path: str, expected: int, **options: Any) -> httpx2.Response:
        headers = {"Authorization": f"Bearer {self.keys[role]}"}
        answer = await self.client.request(method, path, headers=headers, **options)
        assert answer.status_code == expected, (path, answer.text)
        if role in ("reader", "operator", "wrong"):
            self.told.append(f"{answer.headers} {answer.text}")
        return answer

    async def hear(self, role: str, path: str) -> None:
        """Listen to a stream to its end."""
        headers = {"Authorization": f"Bearer {self.keys[role]}"}
        async with self.client.stream("GET", path, headers=headers) as response:
            assert response.status_code == 200
            self.told.append("\n".join([line async for line in response.aiter_lines()]))


async def test_the_words_are_nowhere_but_where_they_must_be(
    outbox: Outbox,
    sessions: Sessions,
    engine: AsyncEngine,
    database_url: str,
    db: asyncpg.Connection,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    app = FastAPI()
    problem_handlers(app)
    guard = api_keys(sessions)
    app.include_router(outbox_router(outbox, sessions, access=guard))
    app.include_router(outbox_metrics(outbox, sessions, access=guard))
    roles = {
        "reader": await made(sessions, Scope.READ),
        "operator": await made(sessions, Scope.OPERATE),
        "enqueuer": await made(sessions, Scope.ENQUEUE),
        "clear": await made(sessions, Scope.READ_PAYLOAD),
        "admin": await made(sessions, Scope.ADMIN),
        "wrong": f"{keys.MARK}000000000000_canary-key",
    }
    async with serving(app, log_config=None) as url, httpx2.AsyncClient(base_url=url, timeout=30) as client:
        callers = Callers(client, roles)
        ids = await worked(callers, outbox, engine, database_url)
        waiting = await plant(engine, "scheduled", task="good", payload={"card": ARGUMENT}, checkpoint={"card": KEPT})
        await everything_is_asked(callers, app, [*ids, waiting, new_id()])
        await much_is_done(callers, ids, waiting)
        await much_goes_wrong(callers, db)
        seen = [(await callers.ask("clear", "GET", f"/v1/jobs/{id}", 200)).text for id in ids]

    # They are where they belong.
    assert all(any(word in each for each in seen) for word in (ARGUMENT, RESULT, MESSAGE))
    logged = all_of(caplog.records)
    assert "job_ended" in logged
    assert "ValueError" in logged
    assert len(callers.told) > 40
    assert any("outbox_queue_jobs{" in each for each in callers.told)
    noted = "".join([row["t"] for row in await db.fetch("select to_jsonb(t)::text as t from outbox.audit t")])
    assert '"actor": "tester"' in noted
    stored = "".join([row["t"] for row in await db.fetch("select to_jsonb(t)::text as t from outbox.api_key t")])
    secrets = [key.removeprefix(keys.MARK).partition("_")[2] for key in roles.values()]
    for where, text in {"logs": logged, "answers": "".join(callers.told), "audit": noted, "keys": stored}.items():
        for word in (ARGUMENT, RESULT, MESSAGE, KEPT, *secrets):
            assert word not in text, (where, word, around(text, word))


async def worked(callers: Callers, outbox: Outbox, engine: AsyncEngine, database_url: str) -> list[UUID]:
    """Jobs that a worker has run, well and badly, while somebody was listening."""
    ids = {}
    for task in ("good", "bad", "unstorable"):
        body = {"task": task, "arguments": {"card": ARGUMENT}}
        ids[task] = UUID((await callers.ask("enqueuer", "POST", "/v1/jobs", 202, json=body)).json()["id"])
    ids["strict"] = await plant(engine, task="strict", payload={"n": ARGUMENT})
    listening = asyncio.create_task(callers.hear("reader", f"/v1/jobs/{ids['bad']}/events"))
    async with working(outbox, database_url):
        for task, id in ids.items():
            await in_state(engine, id, State.FAILED if task in ("bad", "strict") else State.SUCCEEDED)
    await listening
    return list(ids.values())


async def everything_is_asked(callers: Callers, app: FastAPI, ids: Iterable[UUID]) -> None:
    """Read from every address, for each of these jobs."""
    schedule = {"task": "good", "arguments": {"card": ARGUMENT}, "cron": "@daily"}
    await callers.ask("operator", "PUT", "/v1/schedules/nightly", 200, json=schedule)
    for path, methods in app.openapi()["paths"].items():
        if "get" in methods and methods["get"]["operationId"] != "jobs_events":
            for asked in {path.format(job_id=id, batch_id=id, worker_id=id, name="nightly") for id in ids}:
                answer = await callers.client.get(asked, headers={"Authorization": f"Bearer {callers.keys['reader']}"})
                assert answer.status_code in (200, 403, 404), asked
                callers.told.append(f"{answer.headers} {answer.text}")


async def much_is_done(callers: Callers, ids: Sequence[UUID], waiting: UUID) -> None:
    """What operators do, and are refused."""
    for path, status in (
        (f"/v1/jobs/{waiting}/run", 200),
        (f"/v1/jobs/{waiting}/cancel", 200),
        (f"/v1/jobs/{waiting}/run", 409),
        (f"/v1/jobs/{ids[1]}/retry", 200),
        (f"/v1/jobs/{new_id()}/retry", 404),
    ):
        await callers.ask("operator", "POST", path, status)
    by_argument = {"filter": {"arguments": f'{{"card": "{ARGUMENT}"}}'}}
    await callers.ask("operator", "POST", "/v1/jobs/bulk/cancel", 403, json=by_argument)
    done = await callers.ask("admin", "POST", "/v1/jobs/bulk/cancel", 200, json=by_argument)
    assert done.json()["changed"] == 1


async def much_goes_wrong(callers: Callers, db: asyncpg.Connection) -> None:
    """Requests that are not valid, nobody's, or in vain."""
    bodies: list[Any] = [{"task": "strict", "arguments": {"n": ARGUMENT}}, {"task": ARGUMENT}, [ARGUMENT]]
    for body in bodies:
        await callers.ask("enqueuer", "POST", "/v1/jobs", 422, json=body)
    await db.execute("alter table outbox.live_job rename to gone")
    await db.execute("alter view outbox.job rename to gone_too")
    body = {"task": "good", "arguments": {"card": ARGUMENT}}
    await callers.ask("enqueuer", "POST", "/v1/jobs", 500, json=body)
    await callers.ask("reader", "GET", "/v1/jobs", 500)
    await db.execute("alter table outbox.gone rename to live_job")
    await db.execute("alter view outbox.gone_too rename to job")
    for path in ("/v1/jobs", "/v1/audit", f"/v1/jobs/{new_id()}"):
        await callers.ask("wrong", "GET", path, 401)
    for cookie, status in ((callers.keys["reader"], 200), (callers.keys["wrong"], 401)):
        headers = {"Cookie": f"{access.COOKIE}={cookie}"}
        assert (await callers.client.get("/v1/jobs", headers=headers)).status_code == status


def around(text: str, word: str) -> str:
    at = text.index(word)
    return text[max(0, at - 300) : at + 100]


async def test_no_metric_says_what_rows_say(
    outbox: Outbox, sessions: Sessions, engine: AsyncEngine, database_url: str, db: asyncpg.Connection
) -> None:
    said: dict[str, Any] = {each: f"canary-{each}" for each in ("key", "group", "limit_key", "tenant")}
    async with sessions.begin() as session:
        ids = [
            outbox[task].options(tags=["canary-tag"], **said).enqueue(session, ARGUMENT).id for task in ("good", "bad")
        ]
    await plant(engine, task="canary-task", payload={"card": ARGUMENT}, tags=["canary-tag"], tenant="canary-tenant")
    app = FastAPI()
    app.include_router(outbox_metrics(outbox, sessions, access=api_keys(sessions)))
    headers = bearer(await made(sessions, Scope.READ))
    transport = httpx2.ASGITransport(app)
    async with (
        httpx2.AsyncClient(transport=transport, base_url="http://shop.test", headers=headers) as client,
        working(outbox, database_url) as (worker, _),
    ):
        for id, state in zip(ids, (State.SUCCEEDED, State.FAILED), strict=True):
            await in_state(engine, id, state)
        told = (await client.get("/metrics")).text
    counted = encode(WorkerCollector(worker.meter)).decode()
    assert 'outbox_queue_jobs{queue="default",state="ready"} 1.0' in told
    assert 'outbox_job_attempts_total{outcome="failed",queue="default",task="bad"} 1.0' in counted
    assert "canary" in "".join([row["t"] for row in await db.fetch("select to_jsonb(t)::text as t from outbox.job t")])
    assert "canary" not in told + counted


async def test_a_read_key_cannot_guess_arguments(outbox: Outbox, sessions: Sessions, engine: AsyncEngine) -> None:
    id = await plant(engine, payload={"card": "4111"})
    app = FastAPI()
    problem_handlers(app)
    app.include_router(outbox_router(outbox, sessions, access=api_keys(sessions)))
    plain, clear = await made(sessions, Scope.OPERATE), await made(sessions, Scope.READ_PAYLOAD)
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://shop.test") as client:
        for guess, found in (('{"card": "4111"}', 1), ('{"card": "4112"}', 0)):
            refused = await client.get("/v1/jobs", params={"arguments": guess}, headers=bearer(plain))
            assert (refused.status_code, refused.headers["content-type"]) == (403, "application/problem+json")
            counted = await client.post(
                "/v1/jobs/bulk/cancel", json={"filter": {"arguments": guess}, "dry_run": True}, headers=bearer(plain)
            )
            assert counted.status_code == 403
            listed = await client.get("/v1/jobs", params={"arguments": guess}, headers=bearer(clear))
            assert [UUID(each["id"]) for each in listed.json()["data"]] == [id][:found]
