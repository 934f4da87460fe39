"""Every page answers, to whom it may, with what it is about, and refuses everything else as a page."""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote
from uuid import UUID

import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from outbox import Limit, Outbox, State, limit
from outbox.dashboard import live, outbox_dashboard
from outbox.fastapi import Principal, api_keys
from outbox.fastapi.access import COOKIE
from outbox.keys import Scope, opened_by
from tests.dashboard.conftest import Sessions, application, furnish, make_key
from tests.factories import new_id, plant, plant_many, read

PAGES = ("", "/queues", "/jobs", "/schedules", "/workers", "/batches", "/doctor", "/audit")

FORM = {"content-type": "application/x-www-form-urlencoded"}


async def test_every_page_shows_what_it_is_about(
    client: httpx2.AsyncClient, engine: AsyncEngine, sessions: Sessions, outbox: Outbox
) -> None:
    ids = await furnish(engine, sessions, outbox, "striking")
    paths = [*PAGES, "?window=24h", "?window=7d&queue=striking&task=striking", f"/batches/{ids.pop('batch')}"]
    paths += [f"/jobs/{id}" for id in ids.values()]
    for path in paths:
        answer = await client.get(f"/outbox{path}")
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8"), path
        assert "striking" in answer.text, path


async def test_every_page_answers_while_there_is_nothing(client: httpx2.AsyncClient) -> None:
    for path in PAGES:
        assert (await client.get(f"/outbox{path}")).status_code == 200, path
    assert "No worker is up" in (await client.get("/outbox")).text


@pytest.mark.parametrize(
    ("search", "kinds"),
    [
        ("", {"pending", "scheduled", "retrying", "running", "succeeded", "failed", "cancelled"}),
        ("state:failed", {"failed"}),
        ("state:failed state:running task:w", {"failed", "running"}),
        ("key:w", {"failed"}),
        ("group:w state:pending", {"pending"}),
        ("queue:w state:pending", {"pending", "scheduled", "retrying"}),
        ("tag:w args.w:1", set()),
        ("before:1h", set()),
    ],
)
async def test_jobs_are_found(
    client: httpx2.AsyncClient,
    engine: AsyncEngine,
    sessions: Sessions,
    outbox: Outbox,
    search: str,
    kinds: set[str],
) -> None:
    ids = await furnish(engine, sessions, outbox, "w")
    page = (await client.get("/outbox/jobs", params={"q": search})).text
    found = set(re.findall(r'id="row-([0-9a-f-]{36})"', page))
    assert {kind for kind, id in ids.items() if str(id) in found} - {"flow"} == kinds


async def test_an_id_in_the_filter_bar_opens_its_job(client: httpx2.AsyncClient, engine: AsyncEngine) -> None:
    id = await plant(engine)
    answer = await client.get("/outbox/jobs", params={"q": f" {id} "})
    assert (answer.status_code, answer.headers["location"]) == (303, f"/outbox/jobs/{id}")


async def test_pages_of_a_list_follow_each_other(client: httpx2.AsyncClient, engine: AsyncEngine) -> None:
    await plant_many(engine, 120)
    address, seen = "/outbox/jobs?q=task%3Anoop", []
    while address:
        page = (await client.get(address)).text
        seen += re.findall(r'id="row-([0-9a-f-]{36})"', page)
        older = re.search(r'<a href="([^"]+)" rel="next"', page)
        address = older[1].replace("&amp;", "&") if older else ""
    assert len(seen) == len(set(seen)) == 120
    assert seen == sorted(seen, reverse=True)


async def post(client: httpx2.AsyncClient, path: str, **fields: Any) -> httpx2.Response:
    return await client.post(f"/outbox{path}", data=fields)


@pytest.mark.parametrize(
    ("kind", "action", "state"),
    [
        ("failed", "retry", State.PENDING),
        ("pending", "cancel", State.CANCELLED),
        ("running", "cancel", State.RUNNING),
        ("scheduled", "run", State.PENDING),
        ("pending", "priority", State.PENDING),
    ],
)
async def test_a_job_is_changed_and_the_audit_says_by_whom(
    client: httpx2.AsyncClient, engine: AsyncEngine, kind: str, action: str, state: State
) -> None:
    id = await plant(engine, kind)
    answer = await post(client, f"/jobs/{id}/{action}", priority="3", back=f"/outbox/jobs/{id}")
    assert (answer.status_code, answer.headers["location"]) == (303, f"/outbox/jobs/{id}?said={action}")
    job = await read(engine, id)
    assert job.state is state
    assert job.priority == (3 if action == "priority" else 1)
    [deed] = await deeds(engine)
    assert (deed.actor, deed.action, deed.target) == ("local", action, f"job {id}")
    assert 'role="status"' in (await client.get(answer.headers["location"])).text


async def test_a_job_that_is_discarded_is_gone(client: httpx2.AsyncClient, engine: AsyncEngine) -> None:
    id = await plant(engine, "succeeded")
    answer = await post(client, f"/jobs/{id}/discard")
    assert answer.headers["location"] == "/outbox/jobs?said=discard"
    assert (await client.get(f"/outbox/jobs/{id}")).status_code == 404


async def test_what_a_state_does_not_allow_is_refused_as_a_page(
    client: httpx2.AsyncClient, engine: AsyncEngine
) -> None:
    id = await plant(engine, "succeeded")
    answer = await post(client, f"/jobs/{id}/cancel")
    assert (answer.status_code, answer.headers["content-type"]) == (409, "text/html; charset=utf-8")
    assert await deeds(engine) == []


async def deeds(engine: AsyncEngine) -> list[Any]:
    async with engine.connect() as connection:
        return list((await connection.execute(text("select * from outbox.audit order by id"))).all())


async def test_many_are_counted_first_and_changed_in_portions(client: httpx2.AsyncClient, engine: AsyncEngine) -> None:
    await plant_many(engine, 2300, queue="bulk")
    await plant(engine, queue="other")
    asked = (await client.get("/outbox/jobs/change", params={"action": "cancel", "q": "queue:bulk"})).text
    assert "Cancel 2,300 jobs?" in asked
    assert await deeds(engine) == []
    fields = {"action": "cancel", "q": "queue:bulk", "done": "0", "count": "2300"}
    portions = []
    while True:
        answer = await post(client, "/jobs/change", **fields)
        if answer.status_code == 303:
            break
        fields |= dict(re.findall(r'name="(done|after)" value="([^"]+)"', answer.text))
        portions.append(int(fields["done"]))
    assert portions == [1000, 2000]
    assert answer.headers["location"] == "/outbox/jobs?q=queue%3Abulk&said=cancel&count=2300"
    assert [deed.detail["changed"] for deed in await deeds(engine)] == [1000, 1000, 300]
    async with engine.connect() as connection:
        left = (await connection.execute(text("select queue from outbox.live_job"))).scalars().all()
    assert left == ["other"]


async def test_those_that_are_selected_are_changed(client: httpx2.AsyncClient, engine: AsyncEngine) -> None:
    failed = [await plant(engine, "failed") for _ in range(3)]
    chosen = [str(id) for id in failed[:2]]
    asked = await client.get("/outbox/jobs/change", params={"action": "retry", "id": chosen})
    assert "Retry 2 jobs?" in asked.text
    answer = await post(client, "/jobs/change", action="retry", id=chosen)
    assert answer.headers["location"] == "/outbox/jobs?said=retry&count=2"
    assert [(await read(engine, id)).state for id in failed] == [State.PENDING, State.PENDING, State.FAILED]


@pytest.mark.parametrize(
    ("action", "fields", "column", "value"),
    [
        ("pause", {}, "paused_at is not null", True),
        ("resume", {}, "paused_at is null", True),
        ("ceiling", {"ceiling": "500"}, "ceiling", 500),
        ("ceiling", {"ceiling": ""}, "ceiling", None),
    ],
)
async def test_a_queue_is_changed(
    client: httpx2.AsyncClient, engine: AsyncEngine, action: str, fields: dict[str, str], column: str, value: object
) -> None:
    name = "a/b ü"
    await post(client, "/queues/pause", name=name)
    answer = await post(client, f"/queues/{action}", name=name, **fields)
    assert answer.headers["location"] == f"/outbox/queues?said={action}"
    async with engine.connect() as connection:
        statement = text(f"select {column} from outbox.queue where name = :name")  # noqa: S608 - ours
        assert (await connection.execute(statement, {"name": name})).scalar_one() == value
    assert (await deeds(engine))[-1].target == f"queue {name}"


async def test_how_many_start_in_a_second_stays_when_how_many_run_is_said(
    client: httpx2.AsyncClient, sessions: Sessions
) -> None:
    async with sessions.begin() as session:
        await limit.put(session, "queue", "mail", Limit(rate=5, burst=2))
    for said, concurrency in (("3", 3), ("", None)):
        await post(client, "/queues/limit", name="mail", concurrency=said)
        async with sessions() as session:
            [rule] = await limit.rules(session)
        assert (rule.limit.concurrency, rule.limit.rate_per_second, rule.limit.burst) == (concurrency, 5, 2)


@pytest.mark.parametrize(("action", "kind"), [("priority", "scheduled"), ("run", "scheduled"), ("cancel", "running")])
async def test_many_that_stay_where_they_are_are_each_changed_once(
    client: httpx2.AsyncClient, engine: AsyncEngine, action: str, kind: str
) -> None:
    state = "running" if kind == "running" else "pending"
    await plant_many(engine, 2300, state=state, ago=-3600)
    fields = {"action": action, "q": "task:noop", "priority": "3"}
    for _ in range(2):
        answer = await post(client, "/jobs/change", **fields)
        assert answer.status_code == 200
        fields |= dict(re.findall(r'name="(done|after)" value="([^"]+)"', answer.text))
    answer = await post(client, "/jobs/change", **fields)
    assert answer.headers["location"].endswith(f"said={action}&count=2300")


async def test_the_doctor_says_the_settings_that_others_have(client: httpx2.AsyncClient) -> None:
    for path in ("/outbox/doctor", "/v1/doctor"):
        text = re.sub(r"<[^>]+>|\s+", " ", (await client.get(path)).text)
        assert re.search(r"statement_timeout\W+(value\W+)?0\b", text), text


async def test_a_limit_is_set_and_taken_away(client: httpx2.AsyncClient, engine: AsyncEngine) -> None:
    await post(client, "/queues/limit", name="mail", concurrency="3")
    async with engine.connect() as connection:
        rows = await connection.execute(text("select scope, name, concurrency from outbox.job_limit"))
        assert [tuple(row) for row in rows] == [("queue", "mail", 3)]
    await post(client, "/queues/limit", name="mail", concurrency="")
    async with engine.connect() as connection:
        assert (await connection.execute(text("select count(*) from outbox.job_limit"))).scalar_one() == 0


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/queues/limit", {"name": "mail", "concurrency": "-1"}),
        ("/queues/ceiling", {"name": "mail", "ceiling": "1e9"}),
        ("/queues/ceiling", {"name": "mail", "ceiling": "999999999"}),
        ("/queues/pause", {"name": ""}),
        ("/queues/pause", {"name": "x\x00"}),
        ("/jobs/change", {"action": "explode"}),
        ("/jobs/change", {"action": "priority", "q": "queue:mail"}),
        ("/jobs/change", {"action": "retry", "id": "7"}),
        ("/jobs/change", {"action": "retry", "q": "colour:red"}),
    ],
)
async def test_what_makes_no_sense_is_refused_and_nothing_is_done(
    client: httpx2.AsyncClient, engine: AsyncEngine, path: str, fields: dict[str, str]
) -> None:
    answer = await post(client, path, **fields)
    assert (answer.status_code, answer.headers["content-type"]) == (422, "text/html; charset=utf-8")
    assert await deeds(engine) == []


async def test_a_schedule_is_fired_paused_and_resumed(
    client: httpx2.AsyncClient, engine: AsyncEngine, sessions: Sessions, outbox: Outbox
) -> None:
    await furnish(engine, sessions, outbox, "every five")
    fired = await post(client, "/schedules/fire", name="every five")
    id = re.fullmatch(r"/outbox/jobs/([0-9a-f-]{36})\?said=fire", fired.headers["location"])
    assert id is not None
    assert (await read(engine, UUID(id[1]))).task == "noop"
    for action, paused in (("pause", True), ("resume", False)):
        await post(client, f"/schedules/{action}", name="every five")
        async with engine.connect() as connection:
            paused_at = (await connection.execute(text("select paused_at from outbox.schedule"))).scalar_one()
        assert (paused_at is not None) is paused
    assert (await post(client, "/schedules/fire", name="none")).status_code == 404


async def test_a_batch_is_cancelled(
    client: httpx2.AsyncClient, engine: AsyncEngine, sessions: Sessions, outbox: Outbox
) -> None:
    ids = await furnish(engine, sessions, outbox)
    assert "Once all have ended: " in (await client.get(f"/outbox/batches/{ids['batch']}")).text
    await post(client, f"/batches/{ids['batch']}/cancel")
    assert (await read(engine, ids["flow"])).state is State.CANCELLED
    assert (await post(client, f"/batches/{new_id()}/cancel")).status_code == 404


# --- Who may what. Each address, the scope that it needs, and whether it is about the jobs of all tenants.

ROUTES = {
    ("GET", ""): (Scope.READ, False),
    ("GET", "/queues"): (Scope.READ, True),
    ("POST", "/queues/{action}"): (Scope.OPERATE, True),
    ("GET", "/jobs"): (Scope.READ, False),
    ("GET", "/jobs/change"): (Scope.OPERATE, False),
    ("POST", "/jobs/change"): (Scope.OPERATE, False),
    ("GET", "/jobs/{job_id}"): (Scope.READ, False),
    ("POST", "/jobs/{job_id}/{action}"): (Scope.OPERATE, False),
    ("GET", "/schedules"): (Scope.READ, True),
    ("POST", "/schedules/{action}"): (Scope.OPERATE, True),
    ("GET", "/batches"): (Scope.READ, False),
    ("GET", "/batches/{batch_id}"): (Scope.READ, False),
    ("POST", "/batches/{batch_id}/cancel"): (Scope.OPERATE, False),
    ("GET", "/workers"): (Scope.READ, True),
    ("GET", "/doctor"): (Scope.OPERATE, True),
    ("GET", "/audit"): (Scope.ADMIN, True),
    ("GET", "/live"): (Scope.READ, False),
}
OPEN = {("GET", "/login"), ("POST", "/login"), ("POST", "/logout"), ("GET", "/static/{version}/{name}")}


def routes(among: Iterable[Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for route in among:
        if hasattr(route, "original_router"):
            yield from routes(route.original_router.routes, prefix + route.include_context.prefix)
        else:
            yield from ((method, prefix + route.path) for method in route.methods - {"HEAD"})


def test_every_route_is_in_the_matrix(outbox: Outbox, sessions: Sessions) -> None:
    router = outbox_dashboard(outbox, sessions, access=api_keys(sessions))
    assert {(method, path.removeprefix("/outbox")) for method, path in routes(router.routes)} == set(ROUTES) | OPEN


@pytest.mark.parametrize("tenant", [None, "acme"])
@pytest.mark.parametrize("scope", [None, *Scope])
async def test_every_route_opens_to_those_who_may(
    guarded: httpx2.AsyncClient, sessions: Sessions, engine: AsyncEngine, scope: Scope | None, tenant: str | None
) -> None:
    if scope is not None:
        guarded.cookies.set(COOKIE, await make_key(sessions, scope, tenant=tenant))
    job = await plant(engine, "failed", tenant="acme")
    for (method, path), (needed, of_all) in ROUTES.items():
        if path == "/live":
            continue  # a stream: see test_live
        address = "/outbox" + path.format(job_id=job, batch_id=new_id(), action="retry" if "job" in path else "pause")
        query = {"action": "retry"} if path == "/jobs/change" else {}
        sent = {"data": {"name": "x", "action": "retry", "priority": "1"}} if method == "POST" else {}
        answer = await guarded.request(method, address, params=query, **sent)  # type: ignore[arg-type]
        if scope is None:
            assert answer.status_code == 303, (method, path)
            assert answer.headers["location"].startswith("/outbox/login"), (method, path)
        elif needed not in opened_by([scope]) or (of_all and tenant is not None):
            assert answer.status_code == 403, (method, path, answer.status_code)
        else:
            assert answer.status_code in (200, 303, 404, 409), (method, path, answer.status_code)
            assert "login" not in answer.headers.get("location", ""), (method, path)


async def test_what_is_anothers_is_not_there(
    guarded: httpx2.AsyncClient, engine: AsyncEngine, sessions: Sessions, outbox: Outbox
) -> None:
    ids = await furnish(engine, sessions, outbox, "secretive")
    key = await make_key(sessions, Scope.OPERATE, Scope.READ_PAYLOAD, tenant="acme")
    guarded.cookies.set(COOKIE, key)
    missing = await guarded.get(f"/outbox/jobs/{new_id()}")
    for name, id in ids.items():
        path = f"/outbox/{'batches' if name == 'batch' else 'jobs'}/{id}"
        answer = await guarded.get(path)
        assert answer.status_code == 404, name
        assert "secretive" not in answer.text
        if name not in ("batch", "flow"):
            assert answer.text.replace(str(id), "") == re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "", missing.text)
    assert "secretive" not in (await guarded.get("/outbox/jobs")).text
    assert "secretive" not in (await guarded.get("/outbox/jobs", params={"q": "tenant:other"})).text
    asked = await guarded.get("/outbox/jobs/change", params={"action": "retry"})
    assert "Retry 0 jobs?" in asked.text


async def test_payloads_are_for_those_who_may_read_them(
    guarded: httpx2.AsyncClient, engine: AsyncEngine, sessions: Sessions
) -> None:
    error = {"type": "ValueError", "message": "canary", "traceback": "canary", "attempt": 1, "fence": 1}
    columns: dict[str, Any] = {
        "payload": {"x": "canary"},
        "errors": [error | {"at": "2026-01-01T00:00:00+00:00", "worker_id": None}],
    }
    ids = [
        await plant(engine, "failed", **columns),
        await plant(engine, "succeeded", result="canary", checkpoint="canary", **columns),
        await plant(engine, "running", progress={"done": 1, "total": 2}, **columns),
    ]
    paths = ["/outbox", "/outbox/jobs", "/outbox/workers", *(f"/outbox/jobs/{id}" for id in ids)]
    guarded.cookies.set(COOKIE, await make_key(sessions, Scope.OPERATE))
    for path in paths:
        assert "canary" not in (await guarded.get(path)).text, path
    guess = {"q": "args.x:canary", "action": "retry"}
    assert "needs the scope read:payload" in (await guarded.get("/outbox/jobs", params=guess)).text
    assert (await guarded.get("/outbox/jobs/change", params=guess)).status_code == 422
    guarded.cookies.set(COOKIE, await make_key(sessions, Scope.READ_PAYLOAD))
    assert (await guarded.get("/outbox/jobs", params=guess)).text.count('id="row-') == 3
    for id in ids:
        assert "canary" in (await guarded.get(f"/outbox/jobs/{id}")).text


TRACE = "0af7651916cd43dd8448eb211c80319c"
CARRIED = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01", "baggage": "customer=canary"}


async def test_a_job_names_its_trace_and_leads_to_it(
    client: httpx2.AsyncClient, engine: AsyncEngine, outbox: Outbox, sessions: Sessions
) -> None:
    id = await plant(engine, "failed", headers=CARRIED)
    shown = (await client.get(f"/outbox/jobs/{id}")).text
    assert f'<span class="id">{TRACE}</span>' in shown
    assert "canary" not in shown
    assert "Trace</dt>" not in (await client.get(f"/outbox/jobs/{await plant(engine)}")).text
    app = FastAPI()
    app.include_router(outbox_dashboard(outbox, sessions, trace_url="https://traces.example.com/?id={trace_id}&x=1"))
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://127.0.0.1") as leading:
        shown = (await leading.get(f"/outbox/jobs/{id}")).text
    assert f'href="https://traces.example.com/?id={TRACE}&amp;x=1"' in shown


@pytest.mark.parametrize("trace_url", ["https://traces.example.com/", "javascript:alert('{trace_id}')", ""])
def test_a_trace_is_shown_at_an_address_that_has_room_for_its_id(
    outbox: Outbox, sessions: Sessions, trace_url: str
) -> None:
    with pytest.raises(ValueError, match="trace_url"):
        outbox_dashboard(outbox, sessions, trace_url=trace_url)


async def test_a_person_logs_in_with_a_key_and_out_again(guarded: httpx2.AsyncClient, sessions: Sessions) -> None:
    wanted = await guarded.get("/outbox/jobs?q=state:failed")
    assert wanted.headers["location"] == f"/outbox/login?to={quote('/outbox/jobs?q=state:failed', safe='')}"
    wrong = await post(guarded, "/login", key="obx_none")
    assert (wrong.status_code, COOKIE in guarded.cookies) == (401, False)
    key = await make_key(sessions, Scope.READ)
    answer = await post(guarded, "/login", key=f" {key} ", back="/outbox/jobs?q=state:failed")
    assert (answer.status_code, answer.headers["location"]) == (303, "/outbox/jobs?q=state:failed")
    cookie = answer.headers["set-cookie"].lower()
    assert all(word in cookie for word in ("httponly", "samesite=strict", "path=/outbox"))
    assert key not in answer.headers["location"]
    assert (await guarded.get("/outbox/jobs")).status_code == 200
    await post(guarded, "/logout")
    assert (await guarded.get("/outbox/jobs")).status_code == 303


async def test_a_cookie_is_for_https_only_where_there_is_https(guarded: httpx2.AsyncClient, sessions: Sessions) -> None:
    key = await make_key(sessions, Scope.READ)
    answer = await guarded.post("https://shop.test/outbox/login", data={"key": key})
    assert "secure" in answer.headers["set-cookie"].lower()


@pytest.mark.parametrize(
    "back",
    [
        "https://evil.test/",
        "//evil.test/outbox",
        "/elsewhere",
        "/outboxes",
        "\\\\evil.test",
        "javascript:alert(1)",
        "/outbox\\..",
        "",
    ],
)
async def test_nobody_is_sent_to_another_site(client: httpx2.AsyncClient, engine: AsyncEngine, back: str) -> None:
    id = await plant(engine, "failed")
    answer = await post(client, f"/jobs/{id}/retry", back=back)
    assert answer.headers["location"] == f"/outbox/jobs/{id}?said=retry"


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "https://evil.test"},
        {"origin": "null"},
    ],
)
async def test_another_site_changes_nothing(
    client: httpx2.AsyncClient,
    guarded: httpx2.AsyncClient,
    sessions: Sessions,
    engine: AsyncEngine,
    headers: dict[str, str],
) -> None:
    id = await plant(engine, "failed")
    guarded.cookies.set(COOKIE, await make_key(sessions, Scope.ADMIN))
    for each in (client, guarded):
        answer = await each.post(f"/outbox/jobs/{id}/retry", data={"back": ""}, headers=headers)
        assert answer.status_code == 403
    assert (await guarded.post("/outbox/login", data={"key": "x"}, headers=headers)).status_code == 403
    assert (await guarded.post("/outbox/logout", headers=headers)).status_code == 403
    assert (await read(engine, id)).state is State.FAILED


async def test_nothing_is_changed_by_looking(client: httpx2.AsyncClient, engine: AsyncEngine) -> None:
    id = await plant(engine, "failed")
    for path in (f"/jobs/{id}/retry", "/queues/pause", "/schedules/fire"):
        assert (await client.get(f"/outbox{path}")).status_code in (404, 405)
    await client.get("/outbox/jobs/change", params={"action": "retry"})
    assert (await read(engine, id)).state is State.FAILED


async def test_a_page_is_closed_to_whatever_else(client: httpx2.AsyncClient) -> None:
    for path in (*PAGES, "/nowhere", f"/jobs/{new_id()}"):
        headers = (await client.get(f"/outbox{path}")).headers
        if path == "/nowhere":
            continue  # the host's own 404
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "unsafe" not in headers["content-security-policy"]
        assert (headers["x-content-type-options"], headers["cache-control"]) == ("nosniff", "private, no-store")


async def test_a_form_that_is_too_large_or_none_is_refused(client: httpx2.AsyncClient) -> None:
    large = await client.post("/outbox/queues/pause", content=b"name=" + b"x" * 100_000, headers=FORM)
    assert large.status_code == 413
    crowded = await client.post("/outbox/queues/pause", content=b"&".join([b"a=1"] * 5000), headers=FORM)
    assert crowded.status_code == 422
    assert (await client.post("/outbox/queues/pause", content=b"name=%ff", headers=FORM)).status_code == 422
    assert (await client.post("/outbox/queues/pause", json={"name": "x"})).status_code == 415


async def test_other_hosts_are_not_answered(client: httpx2.AsyncClient) -> None:
    for headers in ({"host": "evil.test"}, {"x-forwarded-for": "10.0.0.1"}):
        answer = await client.get("/outbox", headers=headers)
        assert (answer.status_code, answer.headers["content-type"]) == (401, "text/html; charset=utf-8")


async def test_a_host_may_say_who_looks(outbox: Outbox, sessions: Sessions, engine: AsyncEngine) -> None:
    def who() -> Principal:
        return Principal("ada", frozenset({Scope.READ}))

    app = application(outbox, sessions, access=who)
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url="http://shop.test") as client:
        page = await client.get("/outbox")
        assert page.status_code == 200
        assert "Log out" not in page.text
        assert (await client.get("/outbox/login")).status_code == 404
        id = await plant(engine, "failed")
        assert (await client.post(f"/outbox/jobs/{id}/retry", data={"back": ""})).status_code == 403


async def test_it_can_be_mounted_elsewhere_behind_a_proxy_that_strips_a_prefix(
    outbox: Outbox, sessions: Sessions, engine: AsyncEngine
) -> None:
    app = FastAPI()
    app.include_router(outbox_dashboard(outbox, sessions, prefix="/internal/jobs"))
    id = await plant(engine, "failed")
    transport = httpx2.ASGITransport(app, root_path="/shop")
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1/shop") as client:
        page = (await client.get("/internal/jobs/jobs")).text
        links = set(re.findall(r'(?:href|src|action)="([^"#]+)', page))
        assert links
        assert all(link.startswith("/shop/internal/jobs") for link in links), links
        answer = await client.post(f"/internal/jobs/jobs/{id}/retry", data={"back": ""})
        assert answer.headers["location"] == f"/shop/internal/jobs/jobs/{id}?said=retry"


async def test_what_has_been_done_is_said_in_words_of_ours(client: httpx2.AsyncClient) -> None:
    page = (await client.get("/outbox/jobs?said=retry&count=1234")).text
    assert "1,234 jobs: runs again." in page
    for forged in ("said=hello", "said=retry&count=x", "said=retry&count=99999999999999"):
        page = (await client.get(f"/outbox/jobs?{forged}")).text
        assert "hello" not in page
        assert ">x jobs" not in page


async def test_charts_get_what_was_counted(
    client: httpx2.AsyncClient, engine: AsyncEngine, sessions: Sessions, outbox: Outbox
) -> None:
    await furnish(engine, sessions, outbox, "mail")
    page = (await client.get("/outbox")).text
    charts = {
        name: json.loads(data) for name, data in re.findall(r"id=\"chart-(\w+)\"[^>]*? data-chart='([^']+)'", page)
    }
    sums = {each["label"]: sum(each["values"]) for each in charts["throughput"]["series"]}
    assert sums == {"succeeded": 5, "retried": 0, "snoozed": 0, "cancelled": 0, "failed": 5}
    assert [(each["label"], sum(each["values"])) for each in charts["backlog"]["series"]] == [("mail", 40)]
    assert {each["label"] for each in charts["runs"]["series"]} == {"p50", "p95", "p99"}
    for chart in charts.values():
        assert all(len(each["values"]) == len(chart["times"]) == 61 for each in chart["series"])


async def test_what_cannot_be_read_lists_nothing_and_offers_nothing_to_be_done(
    client: httpx2.AsyncClient, engine: AsyncEngine
) -> None:
    await plant(engine, "failed")
    page = (await client.get("/outbox/jobs", params={"q": "colour:red"})).text
    assert "colour: can&#39;t be asked for" in page
    assert 'id="row-' not in page
    assert "/outbox/jobs/change" not in page


async def test_no_more_open_pages_than_may_be_are_told(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "STREAMS", 1)
    async with httpx2.AsyncClient(timeout=30) as client:
        for _ in range(2):  # what was refused, or is not there, does not count
            assert (await client.get(f"{url}/live", params={"job": str(new_id())})).status_code == 404
        async with client.stream("GET", f"{url}/live") as open_page:
            assert open_page.status_code == 200
            refused = await client.get(f"{url}/live")
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "10")
