"""Who asks too often has to wait: each key, and each address that tries keys."""

import asyncio
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from outbox import Outbox, keys
from outbox.dashboard import outbox_dashboard
from outbox.fastapi import Principal, Rate, access, api_keys, outbox_router, problem_handlers
from outbox.keys import Scope
from tests.factories import plant

Sessions = async_sessionmaker[AsyncSession]

PROBLEM = "application/problem+json"
NEVER = Rate(1, per=3600, burst=3)
"""Three requests; the fourth comes after the test."""


def application(outbox: Outbox, sessions: Sessions, **options: Any) -> FastAPI:
    app = FastAPI()
    problem_handlers(app)
    known = api_keys(sessions, **options)
    app.include_router(outbox_router(outbox, sessions, access=known))
    app.include_router(outbox_dashboard(outbox, sessions, access=known))
    return app


def client(app: FastAPI, address: str = "192.0.2.1", **options: Any) -> httpx2.AsyncClient:
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False, client=(address, 1))
    return httpx2.AsyncClient(transport=transport, base_url="http://shop.test", **options)


async def make(sessions: Sessions, *scopes: Scope) -> tuple[str, dict[str, str]]:
    async with sessions.begin() as session:
        _, made = await keys.create(session, "tester", scopes)
    return made, {"Authorization": f"Bearer {made}"}


def wrong(n: int) -> dict[str, str]:
    return {"Authorization": f"Bearer obx_{n:012x}_x"}


async def test_a_key_that_asks_too_often_has_to_wait_and_others_have_not(outbox: Outbox, sessions: Sessions) -> None:
    app = application(outbox, sessions, rate=NEVER)
    (_, one), (_, other) = await make(sessions, Scope.READ), await make(sessions, Scope.READ)
    async with client(app) as here, client(app, "192.0.2.2") as there:
        for left in (2, 1, 0):
            answer = await here.get("/v1/tasks", headers=one)
            assert answer.status_code == 200
            assert answer.headers["ratelimit"].startswith(f'"key";r={left}')
        for each in (here, there):  # it is the key that asks, wherever it is
            refused = await each.get("/v1/tasks", headers=one)
            assert (refused.status_code, refused.headers["content-type"]) == (429, PROBLEM)
            assert 3500 < int(refused.headers["retry-after"]) <= 3600
            assert refused.headers["ratelimit-policy"] == '"key";q=3;w=10800'
            assert refused.headers["cache-control"] == "no-store"
        assert (await here.get("/outbox", headers=one)).status_code == 429
        assert (await here.get("/v1/tasks", headers=other)).status_code == 200


async def test_what_is_refused_is_not_done_and_what_is_sent_again_counts(outbox: Outbox, sessions: Sessions) -> None:
    app = application(outbox, sessions, rate=NEVER)
    _, key = await make(sessions, Scope.ENQUEUE, Scope.READ)
    once = key | {"Idempotency-Key": "k"}
    async with client(app) as here:
        answers = [await here.post("/v1/jobs", headers=once, json={"task": "noop"}) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [202, 202, 202, 429]
        assert [answer.headers.get("idempotency-replayed") for answer in answers] == [None, "true", "true", None]
        assert answers[2].headers["ratelimit"].startswith('"key";r=0')
        assert (await here.post("/v1/jobs", headers=key, json={"task": "noop"})).status_code == 429
    # Once it may ask again, the same is answered as before.
    async with client(application(outbox, sessions)) as later:
        again = await later.post("/v1/jobs", headers=once, json={"task": "noop"})
        assert again.json() == answers[0].json()
        assert len((await later.get("/v1/jobs", headers=key)).json()["data"]) == 1


async def test_a_long_poll_counts_once(outbox: Outbox, sessions: Sessions, engine: AsyncEngine) -> None:
    app = application(outbox, sessions, rate=NEVER)
    _, key = await make(sessions, Scope.READ)
    id = await plant(engine, "running")
    async with app.router.lifespan_context(app), client(app) as here:
        assert (await here.get(f"/v1/jobs/{id}", headers=key | {"Prefer": "wait=1"})).status_code == 200
        assert (await here.get("/v1/tasks", headers=key)).headers["ratelimit"].startswith('"key";r=1')


async def test_by_default_a_key_may_ask_a_hundred_times_a_second(outbox: Outbox, sessions: Sessions) -> None:
    app = application(outbox, sessions)
    _, key = await make(sessions, Scope.READ)
    async with client(app) as here:
        answers = [await here.get("/v1/tasks", headers=key) for _ in range(access.REQUESTS.burst)]
    assert {answer.status_code for answer in answers} == {200}
    assert answers[0].headers["ratelimit-policy"] == '"key";q=200;w=2'


async def test_who_brings_their_own_access_is_not_counted(outbox: Outbox, sessions: Sessions) -> None:
    app = FastAPI()
    app.include_router(outbox_router(outbox, sessions, access=lambda: Principal("me", frozenset(Scope))))
    async with client(app) as here:
        answer = await here.get("/v1/tasks")
        assert answer.status_code == 200
        assert "ratelimit" not in answer.headers


# Keys that are none.


async def test_wrong_keys_by_the_api_and_by_the_login_are_counted_together(outbox: Outbox, sessions: Sessions) -> None:
    app = application(outbox, sessions, failures=NEVER)
    good, headers = await make(sessions, Scope.READ)
    async with client(app) as here, client(app, "192.0.2.2") as there:
        assert (await here.get("/v1/tasks", headers=wrong(1))).status_code == 401
        for n in (2, 3):
            assert (await here.post("/outbox/login", data={"key": f"obx_{n:012x}_x"})).status_code == 401
        refused = await here.post("/outbox/login", data={"key": good})
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) > 3500
        assert (await here.get("/v1/tasks", headers=headers)).status_code == 429
        assert (await there.post("/outbox/login", data={"key": good})).status_code == 303


async def test_all_addresses_of_a_network_are_counted_together(outbox: Outbox, sessions: Sessions) -> None:
    app = application(outbox, sessions, failures=NEVER)
    statuses = []
    for n in range(4):
        async with client(app, f"2001:db8:1:2::{n:x}") as here:
            statuses.append((await here.get("/v1/tasks", headers=wrong(n))).status_code)
    assert statuses == [401, 401, 401, 429]
    async with client(app, "2001:db8:1:3::1") as there:
        assert (await there.get("/v1/tasks", headers=wrong(5))).status_code == 401


async def test_a_key_that_was_good_goes_on_whoever_shares_its_address(
    outbox: Outbox, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "REMEMBERED", 0.0)
    app = application(outbox, sessions, failures=NEVER)
    _, headers = await make(sessions, Scope.READ)
    async with client(app) as here:
        assert (await here.get("/v1/tasks", headers=headers)).status_code == 200
        statuses = [(await here.get("/v1/tasks", headers=wrong(n))).status_code for n in range(4)]
        assert statuses == [401, 401, 401, 429]
        assert (await here.get("/v1/tasks", headers=headers)).status_code == 200
        # Until it is revoked; then it is a wrong one like any other.
        async with sessions.begin() as session:
            [known] = await keys.all_of_them(session)
            await keys.revoke(session, known.prefix)
        statuses = [(await here.get("/v1/tasks", headers=headers)).status_code for _ in range(2)]
        assert statuses == [401, 429]


async def test_many_wrong_keys_at_once_are_not_all_looked_up(
    outbox: Outbox, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up = 0
    find = keys.find

    async def count(*args: Any) -> Any:
        nonlocal looked_up
        looked_up += 1
        return await find(*args)

    monkeypatch.setattr(keys, "find", count)
    app = application(outbox, sessions, failures=NEVER)
    async with client(app) as here:
        answers = await asyncio.gather(*[here.get("/v1/tasks", headers=wrong(n)) for n in range(300)])
    assert {answer.status_code for answer in answers} == {401, 429}
    # At most those that had a connection when the third was found wrong.
    assert looked_up <= NEVER.burst + 15


async def test_who_sends_no_key_is_not_counted(outbox: Outbox, sessions: Sessions) -> None:
    app = application(outbox, sessions, failures=NEVER)
    async with client(app) as here:
        assert {(await here.get("/v1/tasks")).status_code for _ in range(10)} == {401}


async def test_that_one_may_have_to_wait_is_documented(outbox: Outbox, sessions: Sessions) -> None:
    app = application(outbox, sessions)
    for methods in app.openapi()["paths"].values():
        for operation in methods.values():
            documented = operation["responses"]["429"]
            assert set(documented["headers"]) == {"Retry-After"}
            assert set(documented["content"]) == {PROBLEM}
