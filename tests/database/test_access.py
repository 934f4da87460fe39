"""Who may do what over HTTP: every route and every role, closed unless somebody has opened it."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID

import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker

from outbox import Outbox, keys
from outbox.batch import Batch
from outbox.fastapi import Principal, access, api_keys, outbox_router, problem_handlers, streams
from outbox.fastapi.metrics import outbox_metrics
from outbox.keys import Scope
from tests.factories import new_id, plant
from tests.service.servers import serving

Sessions = async_sessionmaker[AsyncSession]

SECRET = "canary-5f1c"
READ, ENQUEUE, OPERATE, ADMIN = Scope.READ, Scope.ENQUEUE, Scope.OPERATE, Scope.ADMIN

ROUTES: Mapping[str, tuple[Scope, bool]] = {
    "jobs_list": (READ, False),
    "jobs_get": (READ, False),
    "jobs_events": (READ, False),
    "jobs_explain": (READ, False),
    "tasks_list": (READ, False),
    "jobs_enqueue": (ENQUEUE, False),
    "jobs_enqueue_many": (ENQUEUE, False),
    "jobs_bulk": (OPERATE, False),
    "jobs_cancel": (OPERATE, False),
    "jobs_retry": (OPERATE, False),
    "jobs_run": (OPERATE, False),
    "jobs_change": (OPERATE, False),
    "jobs_discard": (OPERATE, False),
    "batches_list": (READ, False),
    "batches_get": (READ, False),
    "batches_cancel": (OPERATE, False),
    "queues_list": (READ, True),
    "queues_pause": (OPERATE, True),
    "queues_resume": (OPERATE, True),
    "queues_ceiling": (OPERATE, True),
    "limits_list": (READ, True),
    "limits_put": (OPERATE, True),
    "limits_delete": (OPERATE, True),
    "schedules_list": (READ, True),
    "schedules_get": (READ, True),
    "schedules_put": (OPERATE, True),
    "schedules_delete": (OPERATE, True),
    "schedules_pause": (OPERATE, True),
    "schedules_resume": (OPERATE, True),
    "schedules_fire": (OPERATE, True),
    "workers_list": (READ, True),
    "workers_jobs": (READ, True),
    "statistics_get": (READ, True),
    "doctor_get": (OPERATE, True),
    "audit_list": (ADMIN, True),
    "metrics_get": (READ, True),
}
"""Each route: the scope that it needs, and whether it is about the jobs of all tenants."""


@pytest.fixture
def app(outbox: Outbox, sessions: Sessions) -> FastAPI:
    app = FastAPI()
    problem_handlers(app)
    guard = api_keys(sessions)
    app.include_router(outbox_router(outbox, sessions, access=guard))
    app.include_router(outbox_metrics(outbox, sessions, access=guard))
    return app


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    async with app.router.lifespan_context(app):
        transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://shop.test") as client:
            yield client


@pytest.fixture
async def connection(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    async with engine.connect() as connection:
        yield await connection.execution_options(isolation_level="AUTOCOMMIT")


async def key(sessions: Sessions, *scopes: Scope, tenant: str | None = None, **options: Any) -> dict[str, str]:
    async with sessions.begin() as session:
        _, made = await keys.create(session, "tester", scopes, tenant=tenant, **options)
    return {"Authorization": f"Bearer {made}"}


def routes(app: FastAPI) -> list[tuple[str, str, str]]:
    return [
        (operation["operationId"], method.upper(), path)
        for path, methods in app.openapi()["paths"].items()
        for method, operation in methods.items()
    ]


async def call(
    client: httpx2.AsyncClient, operation: str, method: str, path: str, headers: Mapping[str, str], **names: str
) -> httpx2.Response:
    given = {"job_id": str(new_id()), "batch_id": str(new_id()), "worker_id": str(new_id())}
    given |= {"name": "x", "action": "retry", "scope": "queue"} | names
    body = {
        "jobs_enqueue": {"task": "noop"},
        "jobs_enqueue_many": {"jobs": [{"task": "noop"}]},
        "jobs_bulk": {"ids": [given["job_id"]]},
        "jobs_change": {"priority": 2},
        "queues_ceiling": {"ceiling": 10},
        "limits_put": {"concurrency": 1},
        "schedules_put": {"task": "noop", "cron": "@daily"},
    }.get(operation)
    return await client.request(method, path.format(**given), headers=headers, json=body)


def headers_of(answer: httpx2.Response) -> tuple[str, str]:
    return answer.headers["cache-control"], answer.headers["x-content-type-options"]


async def test_every_route_is_in_the_matrix(app: FastAPI) -> None:
    assert {operation for operation, _, _ in routes(app)} == ROUTES.keys()


async def test_nobody_gets_anything(app: FastAPI, client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access.KeyAccess, "_refuse_if_too_many", lambda *_: None)
    for operation, method, path in routes(app):
        for headers in ({}, {"Authorization": "Bearer obx_000000000000_wrong"}, {"Authorization": "Basic eDp5"}):
            answer = await call(client, operation, method, path, headers)
            assert (answer.status_code, answer.headers["content-type"]) == (401, "application/problem+json"), operation
            assert headers_of(answer) == ("no-store", "nosniff"), operation


@pytest.mark.parametrize("tenant", [None, "acme"])
@pytest.mark.parametrize("scope", list(Scope))
async def test_every_role_gets_what_it_is_for_and_nothing_else(
    app: FastAPI, client: httpx2.AsyncClient, sessions: Sessions, scope: Scope, tenant: str | None
) -> None:
    headers = await key(sessions, scope, tenant=tenant)
    opened = keys.opened_by([scope])
    for operation, method, path in routes(app):
        needed, of_all = ROUTES[operation]
        answer = await call(client, operation, method, path, headers)
        assert headers_of(answer) == ("no-store", "nosniff"), operation
        if needed in opened and not (of_all and tenant):
            assert answer.status_code < 500, operation
            assert answer.status_code not in (401, 403), (operation, answer.text)
        else:
            assert answer.status_code == 403, (operation, answer.text)


# Keys.


async def test_a_key_in_the_address_opens_nothing(client: httpx2.AsyncClient, sessions: Sessions) -> None:
    made = (await key(sessions, ADMIN))["Authorization"].removeprefix("Bearer ")
    assert (await client.get("/v1/jobs", params={"api_key": made})).status_code == 401
    assert (await client.get("/v1/jobs", headers={"Cookie": f"{access.COOKIE}={made}"})).status_code == 200


async def test_a_revoked_key_opens_nothing_within_five_seconds(
    client: httpx2.AsyncClient, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert access.REMEMBERED < 5
    monkeypatch.setattr(access, "REMEMBERED", 0.2)
    headers = await key(sessions, READ)
    assert (await client.get("/v1/jobs", headers=headers)).status_code == 200
    async with sessions.begin() as session:
        [known] = await keys.all_of_them(session)
        await keys.revoke(session, known.prefix)
    await asyncio.sleep(0.2)
    assert (await client.get("/v1/jobs", headers=headers)).status_code == 401


async def test_a_good_key_is_looked_up_once_in_a_while_only(
    client: httpx2.AsyncClient, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = await key(sessions, READ)
    looked_up = 0
    find = keys.find

    async def count(*args: Any) -> Any:
        nonlocal looked_up
        looked_up += 1
        return await find(*args)

    monkeypatch.setattr(keys, "find", count)
    for _ in range(20):
        assert (await client.get("/v1/tasks", headers=headers)).status_code == 200
    assert looked_up == 1


async def test_who_tries_too_many_keys_has_to_wait_and_others_have_not(
    app: FastAPI, client: httpx2.AsyncClient, sessions: Sessions
) -> None:
    good = await key(sessions, READ)
    statuses = [
        (await client.get("/v1/jobs", headers={"Authorization": f"Bearer obx_{n:012x}_x"})).status_code
        for n in range(2 * access.FAILURES.burst)
    ]
    assert statuses[: access.FAILURES.burst] == [401] * access.FAILURES.burst
    assert statuses[-1] == 429
    refused = await client.get("/v1/jobs", headers=good)
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["retry-after"]) <= 61
    transport = httpx2.ASGITransport(app, client=("192.0.2.7", 1))
    async with httpx2.AsyncClient(transport=transport, base_url="http://shop.test") as other:
        assert (await other.get("/v1/jobs", headers=good)).status_code == 200


async def test_a_stream_ends_when_its_key_does(
    app: FastAPI, sessions: Sessions, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert streams.RECHECK <= 10
    monkeypatch.setattr(streams, "RECHECK", 0.1)
    id = await plant(engine)
    headers = await key(sessions, READ)
    async with (
        serving(app) as url,
        httpx2.AsyncClient(base_url=url, timeout=30) as client,
        client.stream("GET", f"/v1/jobs/{id}/events", headers=headers) as response,
    ):
        lines = response.aiter_lines()
        assert await anext(lines) == "event: job"
        async with sessions.begin() as session:
            [known] = await keys.all_of_them(session)
            await keys.revoke(session, known.prefix)
        assert [line async for line in lines if line.startswith("event")] == []


async def test_an_expired_key_opens_nothing(client: httpx2.AsyncClient, sessions: Sessions) -> None:
    headers = await key(sessions, READ, expires_in=timedelta(0))
    assert (await client.get("/v1/jobs", headers=headers)).status_code == 401


# Tenants.


async def test_what_is_another_tenants_is_answered_like_what_is_not_there(
    app: FastAPI, client: httpx2.AsyncClient, sessions: Sessions, engine: AsyncEngine
) -> None:
    kinds = ("pending", "running", "failed", "succeeded", "cancelled")
    theirs = {
        "job_id": [await plant(engine, kind, tenant=tenant) for kind in kinds for tenant in ("acme", None)],
        "batch_id": [await batch_of(sessions, tenant) for tenant in ("acme", None)],
    }
    headers = await key(sessions, READ, OPERATE, Scope.READ_PAYLOAD, tenant="globex")
    asked = set()
    for operation, method, path in routes(app):
        of = next((name for name in theirs if f"{{{name}}}" in path), None)
        if of is None:
            # There is no other way to name what is a tenant's: the rest is for those who see everybody's, or a list.
            assert ROUTES[operation][1] or "{" not in path.replace("{action}", ""), operation
            continue
        asked.add(operation)
        missing = new_id()
        nothing = await call(client, operation, method, path, headers, **{of: str(missing)})
        assert nothing.status_code == 404, operation
        for id in theirs[of]:
            answer = await call(client, operation, method, path, headers, **{of: str(id)})
            assert answer.status_code == 404, operation
            assert answer.text.replace(str(id), "ID") == nothing.text.replace(str(missing), "ID"), operation
            assert answer.headers.keys() == nothing.headers.keys(), operation
    assert len(asked) > 9
    async with engine.connect() as connection:
        states = await connection.execute(text("select state, count(*) from outbox.job group by 1"))
        assert dict(states.all()) == dict.fromkeys(kinds, 2) | {"pending": 4}
        assert await connection.scalar(text("select count(*) from outbox.audit")) == 0


async def batch_of(sessions: Sessions, tenant: str | None) -> UUID:
    """A batch of one job that waits."""
    outbox = Outbox()

    @outbox.task()
    async def noop() -> None: ...

    batch = Batch("theirs", [noop.options(tenant=tenant).job()])
    async with sessions.begin() as session:
        batch.enqueue(session)
    return batch.id


async def test_lists_and_bulk_actions_see_ones_own_only(
    client: httpx2.AsyncClient, sessions: Sessions, engine: AsyncEngine
) -> None:
    mine = await plant(engine, "failed", tenant="acme")
    other = await plant(engine, "failed", tenant="globex")
    nobodys = await plant(engine, "failed")
    headers = await key(sessions, OPERATE, tenant="acme")
    for params in ({}, {"tenant": "globex"}, {"state": "failed"}):
        listed = (await client.get("/v1/jobs", headers=headers, params=params)).json()["data"]
        assert [UUID(job["id"]) for job in listed] == [mine]
    bodies: list[dict[str, Any]] = [
        {"filter": {}},
        {"filter": {"tenant": "globex"}},
        {"ids": [str(mine), str(other), str(nobodys)]},
    ]
    for body in bodies:
        counted = await client.post("/v1/jobs/bulk/retry", headers=headers, json=body | {"dry_run": True})
        assert counted.json()["matched"] == 1
    batches = [await batch_of(sessions, tenant) for tenant in ("acme", "globex", None)]
    listed = (await client.get("/v1/batches", headers=headers)).json()["data"]
    assert [UUID(each["id"]) for each in listed] == batches[:1]
    await client.post("/v1/jobs/bulk/discard", headers=headers, json={"filter": {"state": ["failed"]}})
    everybody = await key(sessions, READ)
    left = (await client.get("/v1/jobs", headers=everybody, params={"state": "failed"})).json()["data"]
    assert {UUID(job["id"]) for job in left} == {other, nobodys}


async def test_what_a_tenant_enqueues_is_theirs(
    client: httpx2.AsyncClient, sessions: Sessions, connection: AsyncConnection
) -> None:
    headers = await key(sessions, ENQUEUE, tenant="acme")
    assert (await client.post("/v1/jobs", headers=headers, json={"task": "noop"})).status_code == 202
    refused = await client.post("/v1/jobs", headers=headers, json={"task": "noop", "tenant": "globex"})
    assert (refused.status_code, refused.json()["errors"][0]["path"]) == (422, "$.body.tenant")
    assert (await connection.execute(text("select tenant from outbox.live_job"))).scalars().all() == ["acme"]


async def test_one_tenants_idempotency_key_is_not_anothers(client: httpx2.AsyncClient, sessions: Sessions) -> None:
    once = {"Idempotency-Key": "k"}
    made = [await key(sessions, ENQUEUE, tenant=tenant) for tenant in ("acme", "globex")]
    first, other = [await client.post("/v1/jobs", headers=each | once, json={"task": "noop"}) for each in made]
    again = await client.post("/v1/jobs", headers=made[0] | once, json={"task": "noop"})
    assert first.json()["id"] == again.json()["id"] != other.json()["id"]
    assert "idempotency-replayed" not in other.headers
    # It says nothing of what another has asked.
    assert (
        await client.post("/v1/jobs", headers=made[1] | once, json={"task": "noop", "priority": 0})
    ).status_code == 422


# What may be seen.


async def test_arguments_results_and_messages_need_their_own_scope(
    client: httpx2.AsyncClient, sessions: Sessions, engine: AsyncEngine
) -> None:
    error = {"type": "ValueError", "message": SECRET, "traceback": SECRET, "attempt": 1, "at": "2026-01-01T00:00:00Z"}
    id = await plant(engine, "failed", payload={"card": SECRET}, result={"card": SECRET}, errors=[error])
    plain, clear = await key(sessions, READ, OPERATE), await key(sessions, Scope.READ_PAYLOAD)
    for path in (f"/v1/jobs/{id}", "/v1/jobs", f"/v1/jobs/{id}/explain"):
        assert SECRET not in (await client.get(path, headers=plain)).text
    shown = (await client.get(f"/v1/jobs/{id}", headers=plain)).json()
    assert (shown["redacted"], shown["arguments"], shown["result"], shown["error"]["type"]) == (
        True,
        None,
        None,
        "ValueError",
    )
    shown = (await client.get(f"/v1/jobs/{id}", headers=clear)).json()
    assert (shown["redacted"], shown["arguments"], shown["result"]) == (False, {"card": SECRET}, {"card": SECRET})
    assert (shown["error"]["message"], shown["error"]["traceback"]) == (SECRET, SECRET)


async def test_what_somebody_does_is_written_down_with_who_did_it(
    client: httpx2.AsyncClient, sessions: Sessions, engine: AsyncEngine
) -> None:
    id = await plant(engine, payload={"card": SECRET})
    headers = await key(sessions, ADMIN)
    await client.post(f"/v1/jobs/{id}/cancel", headers=headers)
    await client.post("/v1/jobs/bulk/retry", headers=headers, json={"filter": {"arguments": f'{{"card": "{SECRET}"}}'}})
    await client.post("/v1/queues/mail/pause", headers=headers)
    refused = await client.post(f"/v1/jobs/{new_id()}/cancel", headers=headers)
    assert refused.status_code == 404
    deeds = (await client.get("/v1/audit", headers=headers)).json()["data"]
    assert [(deed["actor"], deed["action"], deed["target"]) for deed in deeds] == [
        ("tester", "pause", "queue mail"),
        ("tester", "retry", "jobs"),
        ("tester", "cancel", f"job {id}"),
    ]
    assert deeds[2]["detail"]["before"]["state"] == "pending"
    assert deeds[2]["detail"]["after"]["state"] == "cancelled"
    assert SECRET not in str(deeds)


TARGETS = {"jobs_cancel": "pending", "jobs_change": "pending", "jobs_run": "scheduled"}
"""What an action on a job needs, if not one that has failed."""


async def test_every_action_is_written_down_or_not_done(
    app: FastAPI, client: httpx2.AsyncClient, sessions: Sessions, engine: AsyncEngine, connection: AsyncConnection
) -> None:
    headers = await key(sessions, ADMIN)
    actions = {each for each, (scope, _) in ROUTES.items() if scope is OPERATE and each != "doctor_get"}
    for operation, method, path in routes(app):
        if operation not in actions:
            continue
        names = {"job_id": str(await plant(engine, TARGETS.get(operation, "failed"))), "action": "retry"}
        names["batch_id"] = str(await batch_of(sessions, None))
        if operation in ("schedules_delete", "schedules_pause", "schedules_resume", "schedules_fire"):
            await call(client, "schedules_put", "PUT", "/v1/schedules/{name}", headers)
        before = await everything(connection)
        await connection.execute(text("alter table outbox.audit add constraint full_up check (false) not valid"))
        assert (await call(client, operation, method, path, headers, **names)).status_code == 500, operation
        assert await everything(connection) == before, operation
        await connection.execute(text("alter table outbox.audit drop constraint full_up"))
        assert (await call(client, operation, method, path, headers, **names)).status_code < 300, operation
        after = await everything(connection)
        changed = {table for table in after if after[table] != before[table]}
        assert "audit" in changed, operation
        assert len(changed) > 1, operation


async def everything(connection: AsyncConnection) -> dict[str, str]:
    """A digest of every table."""
    tables = await connection.execute(
        text("select relname from pg_class where relnamespace = 'outbox'::regnamespace and relkind in ('r', 'p')")
    )
    digest = "select coalesce(md5(string_agg(t::text, ' ' order by t::text)), '') from outbox.{} t"
    return {name: (await connection.execute(text(digest.format(name)))).scalar_one() for name in tables.scalars()}


# This machine only, unless somebody has said who may ask.


@pytest.fixture
def local_app(outbox: Outbox, sessions: Sessions) -> FastAPI:
    app = FastAPI()
    problem_handlers(app)
    app.include_router(outbox_router(outbox, sessions))
    return app


@pytest.mark.parametrize(
    ("address", "host", "headers", "status"),
    [
        ("127.0.0.1", "127.0.0.1:8000", {}, 200),
        ("127.0.0.1", "localhost", {}, 200),
        ("::1", "[::1]:8000", {}, 200),
        ("192.0.2.7", "127.0.0.1", {}, 401),
        ("127.0.0.1", "evil.example", {}, 401),
        ("127.0.0.1", "localhost.evil.example", {}, 401),
        ("127.0.0.1", "", {}, 401),
        ("127.0.0.1", "localhost", {"X-Forwarded-For": "192.0.2.7"}, 401),
        ("127.0.0.1", "localhost", {"Forwarded": "for=192.0.2.7"}, 401),
    ],
)
async def test_unless_somebody_says_who_may_only_this_machine_is_answered(
    local_app: FastAPI, address: str, host: str, headers: dict[str, str], status: int
) -> None:
    transport = httpx2.ASGITransport(local_app, client=(address, 1))
    async with httpx2.AsyncClient(transport=transport, base_url="http://x") as client:
        for path in ("/v1/jobs", "/v1/queues", "/v1/workers", "/v1/statistics"):
            answer = await client.get(path, headers={"Host": host} | headers)
            assert answer.status_code == status, path


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "http://localhost"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost", "Sec-Fetch-Site": "cross-site"}, 403),
    ],
)
async def test_another_site_cannot_make_a_browser_do_anything(
    local_app: FastAPI, engine: AsyncEngine, headers: dict[str, str], status: int
) -> None:
    id = await plant(engine)
    transport = httpx2.ASGITransport(local_app, client=("127.0.0.1", 1))
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
        assert (await client.post(f"/v1/jobs/{id}/cancel", headers=headers)).status_code == status


async def test_a_cookie_of_a_browser_is_no_licence_for_other_sites(
    client: httpx2.AsyncClient, sessions: Sessions, engine: AsyncEngine
) -> None:
    id = await plant(engine)
    made = (await key(sessions, OPERATE))["Authorization"].removeprefix("Bearer ")
    cookie = {"Cookie": f"{access.COOKIE}={made}"}
    refused = await client.post(f"/v1/jobs/{id}/cancel", headers=cookie | {"Sec-Fetch-Site": "cross-site"})
    assert refused.status_code == 403
    # A key that a program sends is its own idea.
    sent = {"Authorization": f"Bearer {made}", "Origin": "https://app.example"}
    assert (await client.post(f"/v1/jobs/{id}/cancel", headers=sent)).status_code == 200


async def test_another_site_is_told_nothing_and_no_link_does_anything(
    app: FastAPI, client: httpx2.AsyncClient, sessions: Sessions
) -> None:
    headers = await key(sessions, ADMIN)
    asking = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    actions = {path for _, method, path in routes(app) if method != "GET"}
    readable = {path for _, method, path in routes(app) if method == "GET"}
    for path in actions | readable:
        address = path.format(
            job_id=new_id(), batch_id=new_id(), worker_id=new_id(), name="x", scope="queue", action="run"
        )
        preflight = await client.options(address, headers=headers | asking)
        assert preflight.status_code == 405, path
        assert not [name for name in preflight.headers if name.startswith("access-control")], path
        if path not in readable:
            link = await client.get(address, headers=headers)
            # /v1/jobs/batch, as a link, would be a job of that name.
            assert link.status_code == (422 if path == "/v1/jobs/batch" else 405), path


async def test_the_hosts_own_dependency_replaces_all_of_it(
    outbox: Outbox, sessions: Sessions, engine: AsyncEngine
) -> None:
    from fastapi import HTTPException, Request

    def who(request: Request) -> Principal:
        if (name := request.headers.get("x-user")) is None:
            raise HTTPException(401)
        return Principal(name, frozenset({READ}), tenant=name)

    app = FastAPI()
    problem_handlers(app)
    app.include_router(outbox_router(outbox, sessions, access=who))
    mine, _ = await plant(engine, tenant="ada"), await plant(engine, tenant="bob")
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://shop.test") as client:
        assert (await client.get("/v1/jobs")).status_code == 401
        listed = (await client.get("/v1/jobs", headers={"X-User": "ada"})).json()["data"]
        assert [UUID(job["id"]) for job in listed] == [mine]
        assert (await client.post(f"/v1/jobs/{mine}/cancel", headers={"X-User": "ada"})).status_code == 403
