"""What the documentation shows is what runs."""

import asyncio
import base64
import importlib
import importlib.util
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from uuid import UUID

import httpx2
import pytest
import yaml
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from outbox import Job, Outbox, State, WorkerSettings, check, keys, limit, schedule, status
from outbox.exposition import ServiceCollector, WorkerCollector, encode
from outbox.fastapi import TaskAdder
from outbox.meter import OUTCOMES, Meter
from outbox.tally import Tally
from outbox.worker import Worker
from tests.database.workers import drained, working
from tests.factories import plant, read
from tests.waiting import eventually

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.py"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def load(path: Path) -> ModuleType:
    """The example as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_show_the_example_files_to_the_letter() -> None:
    pages = "".join(page.read_text() for page in PAGES)
    shown = re.findall(r"<!-- (docs/examples/\w+\.py) -->\n```python\n(.*?)```", pages, re.DOTALL)
    assert sorted(ROOT / path for path, _ in shown) == EXAMPLES
    for path, code in shown:
        assert (ROOT / path).read_text().partition('"""\n\n')[2] == code, path
    for ending, language in (("sql", "sql"), ("yml", "yaml")):
        whole = re.findall(rf"<!-- (docs/examples/\w+\.{ending}) -->\n```{language}\n(.*?)```", pages, re.DOTALL)
        assert sorted(ROOT / path for path, _ in whole) == sorted((ROOT / "docs" / "examples").glob(f"*.{ending}"))
        for path, shown_whole in whole:
            assert (ROOT / path).read_text() == shown_whole, path


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.name)
def test_the_pages_show_no_python_but_that_of_examples(page: Path) -> None:
    shown = page.read_text()
    assert shown.count("```python") == len(re.findall(r"<!-- docs/examples/\w+\.py -->\n```python\n", shown))


async def test_the_engine_of_the_page_takes_an_address_in_libpqs_words(database_url: str) -> None:
    example = load(ROOT / "docs" / "examples" / "transport.py")
    url = make_url(database_url).update_query_dict({"sslmode": "prefer", "application_name": "the page"})
    async with example.sessions_at(url.render_as_string(hide_password=False))() as session:
        assert await session.scalar(text("show application_name")) == "the page"
        await (await session.connection()).engine.dispose()


async def test_the_one_line_change_from_background_tasks_runs_the_job_once_the_request_has_committed(
    sessions: async_sessionmaker[AsyncSession], database_url: str
) -> None:
    example = load(ROOT / "docs" / "examples" / "replace_background_tasks.py")

    async def get_session() -> AsyncIterator[AsyncSession]:
        async with sessions() as session, session.begin():
            yield session

    example.app.dependency_overrides[example.get_session] = get_session
    transport = httpx2.ASGITransport(app=example.app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://shop") as client:
        answer = await client.post("/orders", params={"email": "ada@example.com"})
    assert answer.status_code == 202

    async def ended() -> Job | None:
        async with sessions() as session:
            job = await status.get(session, UUID(answer.json()["job"]))
        return job if job is not None and job.done else None

    worker = Worker(example.outbox, database_url, WorkerSettings(queues={"mail": 2}))
    working = asyncio.create_task(worker.run())
    job = await eventually(ended)
    worker.stop()
    assert await working
    assert job is not None
    assert job.state is State.SUCCEEDED
    assert job.result == f"receipt {answer.json()['order']} sent to ada@example.com at attempt 1"


async def test_add_task_of_a_plain_function_says_what_to_write(sessions: async_sessionmaker[AsyncSession]) -> None:
    def plain() -> None: ...

    async with sessions() as session:
        with pytest.raises(TypeError, match=r"@outbox\.task\(\)"):
            TaskAdder(session).add_task(plain)  # type: ignore[arg-type]  # that is the mistake


async def test_the_secrets_of_the_page_run_and_are_not_readable(
    sessions: async_sessionmaker[AsyncSession], database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTBOX_SECRET_2026_11", base64.b64encode(os.urandom(32)).decode())
    example = load(ROOT / "docs" / "examples" / "secrets.py")
    async with sessions.begin() as session:
        job = example.send_login_link.enqueue(session, "ada@example.com", "canary")
        await session.flush()
        stored = await session.scalar(text("select payload::text from outbox.live_job"))
    assert "canary" not in stored
    assert '"key": "2026-11"' in stored
    [ended] = await worked(example.outbox, sessions, database_url, ["mail"], job.id)
    assert ended.result == "37 characters sent to ada@example.com"
    assert ended.payload == {"email": "ada@example.com", "token": "**********"}


async def test_the_versions_of_the_page_are_all_run_and_pass_the_check(
    sessions: async_sessionmaker[AsyncSession], engine: AsyncEngine, database_url: str
) -> None:
    example = load(ROOT / "docs" / "examples" / "versions.py")
    old = [{"order": 7, "email": "ada"}, {"order": 7, "to": "ada"}, {"order": 7, "to": ["ada", "bob"]}]
    ids = [await plant(engine, task="send_receipt", version=n, payload=each) for n, each in enumerate(old, start=1)]
    assert (await check.check(example.outbox, database_url)).problems == []
    jobs = await worked(example.outbox, sessions, database_url, ["default"], *ids)
    assert [job.result for job in jobs] == [
        "receipt 7 sent to ada",
        "receipt 7 sent to ada",
        "receipt 7 sent to ada and bob",
    ]


async def test_the_flow_of_the_page_is_counted_and_reported(
    sessions: async_sessionmaker[AsyncSession], database_url: str
) -> None:
    example = load(ROOT / "docs" / "examples" / "batches_and_flows.py")
    async with sessions.begin() as session:
        batch = await example.publish(session, 7, ["ada", "bob", "cy"])
    jobs = await worked(example.outbox, sessions, database_url, ["default"], *(job.id for job in batch))
    assert [job.result for job in jobs] == ["Issue 7", "sent to ada", "sent to bob", "sent to cy", 7]
    async with sessions() as session:
        called = (await session.execute(text("select id from outbox.job where task = 'report'"))).scalar_one()
    [report] = await worked(example.outbox, sessions, database_url, ["default"], called)
    assert report.result == "issue 7: 5 of 5"


async def test_the_requests_and_messages_of_the_page_are_done_once(
    sessions: async_sessionmaker[AsyncSession],
) -> None:
    example = load(ROOT / "docs" / "examples" / "inbox.py")

    async def get_session() -> AsyncIterator[AsyncSession]:
        async with sessions() as session, session.begin():
            yield session

    example.app.dependency_overrides[example.get_session] = get_session
    transport = httpx2.ASGITransport(app=example.app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://shop") as client:
        orders = [await client.post("/orders?order=7", headers={"Idempotency-Key": "k"}) for _ in range(2)]
        payments = [await client.post("/payments/webhook?order=7", headers={"Webhook-Id": "m"}) for _ in range(2)]
    assert orders[0].status_code == 202
    assert orders[0].content == orders[1].content
    assert [answer.json()["new"] for answer in payments] == [True, False]
    async with sessions() as session:
        assert await session.scalar(text("select count(*) from outbox.job")) == 2


Sessions = async_sessionmaker[AsyncSession]


async def test_the_stock_of_the_page_is_taken_with_the_jobs_end(
    sessions: Sessions, engine: AsyncEngine, database_url: str
) -> None:
    example = load(ROOT / "docs" / "examples" / "transactional_completion.py")
    async with sessions.begin() as session:
        await session.execute(text("insert into stock (sku, available) values ('TEA', 11)"))
    example.outbox["take_from_stock"].sessions = sessions
    async with sessions.begin() as session:
        job = example.take_from_stock.enqueue(session, "TEA", 2)
    [ended] = await worked(example.outbox, sessions, database_url, ["default"], job.id)
    assert ended.result == 9
    async with sessions() as session:
        assert await session.scalar(text("select count(*) from outbox.job where task = 'tell_buyer'")) == 1


async def test_the_queues_of_the_page_rest_and_go_on(sessions: Sessions, database_url: str) -> None:
    example = load(ROOT / "docs" / "examples" / "queues.py")
    async with sessions.begin() as session:
        await example.pause_reports(session)
        await example.enqueue(session)
    async with sessions() as session:
        page = await status.page(session, status.JobFilter())
    mails = [job.id for job in page.jobs if job.queue == "mail"]
    await worked(example.outbox, sessions, database_url, list(example.settings.queues), *mails)
    async with sessions.begin() as session:
        left = await status.page(session, status.JobFilter(states=[State.PENDING]))
        await example.resume_reports(session)
    assert [job.task for job in left.jobs] == ["yearly_report"]
    [report] = await worked(example.outbox, sessions, database_url, ["reports"], left.jobs[0].id)
    assert report.result == "report 2026"


async def test_the_keys_of_the_page_are_taken_once(sessions: Sessions) -> None:
    example = load(ROOT / "docs" / "examples" / "unique_jobs.py")
    seen = []
    for customer in (7, 7, 8):
        async with sessions.begin() as session:
            jobs = example.enqueue(session, customer)
        seen.append([job.is_new for job in jobs])
    assert seen == [[True, True], [False, False], [True, True]]


async def test_the_accounts_of_the_page_are_booked_in_order(sessions: Sessions, database_url: str) -> None:
    example = load(ROOT / "docs" / "examples" / "groups.py")
    for amount in range(10):
        async with sessions.begin() as session:
            for account in ("a", "b"):
                example.enqueue(session, account, amount)
    async with sessions() as session:
        page = await status.page(session, status.JobFilter())
    await worked(example.outbox, sessions, database_url, ["default"], *(job.id for job in page.jobs))
    assert example.booked == {"a": list(range(10)), "b": list(range(10))}


async def test_the_limits_of_the_page_hold_for_its_jobs(sessions: Sessions, database_url: str) -> None:
    example = load(ROOT / "docs" / "examples" / "limits.py")
    async with sessions.begin() as session:
        await example.slow_down(session)
        for n in range(6):
            example.enqueue(session, "ab"[n % 2], n)
    async with sessions() as session:
        page = await status.page(session, status.JobFilter())
    assert all(job.limited for job in page.jobs)
    await worked(example.outbox, sessions, database_url, ["default"], *(job.id for job in page.jobs))
    async with sessions() as session:
        rules = await limit.rules(session)
    assert [(rule.name, rule.per_key, rule.declared) for rule in rules] == [
        ("reports", False, True),
        ("call_partner", False, False),
        ("call_partner", True, True),
    ]


async def test_the_schedules_of_the_page_fire(sessions: Sessions, engine: AsyncEngine, database_url: str) -> None:
    example = load(ROOT / "docs" / "examples" / "schedules.py")
    async with sessions.begin() as session:
        await example.set_up(session)
        job = await schedule.fire(session, "clean up")
    await worked(example.outbox, sessions, database_url, ["default"], job.id)
    async with sessions.begin() as session:
        await session.execute(text("update outbox.schedule set next_at = next_at - interval '7 days'"))
    worker = Worker(example.outbox, database_url)
    working = asyncio.create_task(worker.run())

    async def caught_up() -> bool:
        async with sessions() as session:
            statement = "select count(*) from outbox.job where task = 'daily_report'"
            return bool(await session.scalar(text(statement)) == 5)

    await eventually(caught_up)
    worker.stop()
    assert await working


async def test_the_import_of_the_page_goes_on_where_it_was(sessions: Sessions, database_url: str) -> None:
    example = load(ROOT / "docs" / "examples" / "checkpoints.py")
    async with sessions.begin() as session:
        job = example.import_rows.enqueue(session, [10, 20, 30, 40])
    [ended] = await worked(example.outbox, sessions, database_url, ["default"], job.id)
    assert (ended.result, ended.attempt) == (4, 2)
    assert example.stored == [10, 20, 30, 40]
    assert ended.progress == {"done": 4, "total": 4, "message": "row 4"}


@pytest.mark.parametrize(
    ("parcel", "state", "result", "attempt"),
    [
        ("a book", State.SUCCEEDED, "delivered at attempt 1", 1),
        ("no longer wanted", State.CANCELLED, None, 1),
        ("nobody at home", State.SUCCEEDED, "delivered at attempt 1", 1),
        ("too many today", State.SUCCEEDED, "delivered at attempt 1", 1),
        ("no address", State.FAILED, None, 1),
        ("road closed", State.SUCCEEDED, "delivered at attempt 2", 2),
    ],
)
async def test_the_parcels_of_the_page_end_as_it_says(
    sessions: Sessions, database_url: str, parcel: str, state: State, result: str | None, attempt: int
) -> None:
    example = load(ROOT / "docs" / "examples" / "retries.py")
    async with sessions.begin() as session:
        job = example.deliver.enqueue(session, parcel)
    [ended] = await worked(example.outbox, sessions, database_url, ["default"], job.id)
    assert (ended.state, ended.result, ended.attempt) == (state, result, attempt)


async def test_the_ceiling_of_the_page_is_answered_with_503(
    sessions: async_sessionmaker[AsyncSession],
) -> None:
    example = load(ROOT / "docs" / "examples" / "back_pressure.py")

    @example.app.post("/signups")  # type: ignore[untyped-decorator]  # the module is loaded by its path
    async def sign_up() -> None:
        async with sessions.begin() as session:
            example.send_welcome.enqueue(session, "ada@example.com")

    async with sessions.begin() as session:
        await example.set_up(session)
        await session.execute(text("update outbox.queue set ceiling = 1"))
    transport = httpx2.ASGITransport(app=example.app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://shop") as client:
        assert (await client.post("/signups")).status_code == 200
        refused = await client.post("/signups")
    assert (refused.status_code, refused.json()["queue"]) == (503, "mail")
    assert int(refused.headers["retry-after"]) > 0


async def worked(
    outbox: Outbox, sessions: async_sessionmaker[AsyncSession], url: str, queues: list[str], *ids: UUID
) -> list[Job]:
    """The jobs after a worker has run them."""

    async def ended() -> list[Job]:
        async with sessions() as session:
            jobs = [await status.get(session, id) for id in ids]
        done = [job for job in jobs if job is not None and job.done]
        return done if len(done) == len(ids) else []

    worker = Worker(outbox, url, WorkerSettings(queues=dict.fromkeys(queues, 2)))
    working = asyncio.create_task(worker.run())
    jobs = await eventually(ended)
    worker.stop()
    assert await working
    return jobs


async def test_a_handler_in_a_child_process_runs_within_its_limits(
    sessions: async_sessionmaker[AsyncSession], database_url: str
) -> None:
    # Not by load(): the child has to find the module, too.
    example = importlib.import_module("docs.examples.isolation")
    async with sessions() as session, session.begin():
        job = example.render.enqueue(session, 3)

    async def ended() -> Job | None:
        async with sessions() as session:
            found = await status.get(session, job.id)
        return found if found is not None and found.done else None

    worker = Worker(example.outbox, database_url)
    working = asyncio.create_task(worker.run())
    found = await eventually(ended)
    worker.stop()
    assert await working
    assert (found and found.result) == "3 pages"


async def test_the_api_of_the_page_is_closed_and_opens_for_those_it_names(
    sessions: Sessions, engine: AsyncEngine
) -> None:
    example, outbox = load(ROOT / "docs" / "examples" / "http_api.py"), Outbox()
    mine, _ = await plant(engine, tenant="ada"), await plant(engine)
    async with sessions.begin() as session:
        _, key = await keys.create(session, "reporting", [keys.Scope.READ])
    for app, headers, seen in (
        (example.app_with_keys(outbox, sessions), {"Authorization": f"Bearer {key}"}, 2),
        (example.app_with_own_users(outbox, sessions), {"X-User": "ada"}, 1),
    ):
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://shop.test") as client:
            assert (await client.get("/v1/jobs")).status_code == 401
            listed = (await client.get("/v1/jobs", headers=headers)).json()["data"]
            assert len(listed) == seen
            assert str(mine) in {job["id"] for job in listed}


async def test_the_metrics_of_the_page_are_told_to_those_whom_it_configures(sessions: Sessions) -> None:
    app = load(ROOT / "docs" / "examples" / "metrics.py").app_with_metrics(Outbox(), sessions)
    [service, workers] = yaml.safe_load((ROOT / "docs" / "examples" / "prometheus.yml").read_text())["scrape_configs"]
    assert service["metrics_path"] == workers["metrics_path"] == "/metrics"
    assert service["authorization"].keys() == {"credentials_file"}  # sent as a Bearer key, for that is the default
    async with sessions.begin() as session:
        _, key = await keys.create(session, "prometheus", [keys.Scope.READ])
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://shop.test") as client:
        assert (await client.get(service["metrics_path"])).status_code == 401
        told = await client.get(service["metrics_path"], headers={"Authorization": f"Bearer {key}"})
    assert 'outbox_queue_jobs{queue="other",state="ready"} 0.0' in told.text


def told_metrics() -> set[str]:
    """The names of all metrics that there are."""
    page = (encode(ServiceCollector({}, {})) + encode(WorkerCollector(Meter(Tally(), {}, [])))).decode()
    return {name for name in re.findall(r"^# TYPE (\w+)", page, re.MULTILINE) if name.startswith("outbox_")}


def test_the_page_of_metrics_names_every_one_and_no_other() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    assert set(re.findall(r"^\| `(outbox_\w+)` \|", page, re.MULTILINE)) == told_metrics()


def test_the_alerts_of_the_page_are_about_metrics_that_there_are() -> None:
    alerts = yaml.safe_load((ROOT / "docs" / "examples" / "alerts.yml").read_text())
    rules = [rule for group in alerts["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules) >= 5
    for rule in rules:
        named = set(re.findall(r"outbox_\w+", rule["expr"]))
        assert named, rule["alert"]
        assert named <= told_metrics(), rule["alert"]
        assert rule["expr"].count("(") == rule["expr"].count(")")
        outcomes = "|".join(re.findall(r'outcome=~?"([^"]*)"', rule["expr"]))
        assert {*filter(None, outcomes.split("|"))} <= {*OUTCOMES}
        assert rule["annotations"]["summary"]


async def test_the_dashboard_of_the_page_opens_for_those_with_a_key(sessions: Sessions, engine: AsyncEngine) -> None:
    app = load(ROOT / "docs" / "examples" / "dashboard.py").app_with_dashboard(Outbox(), sessions)
    id = await plant(engine)
    async with sessions.begin() as session:
        _, key = await keys.create(session, "ada", [keys.Scope.READ])
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://shop.test") as client:
        assert (await client.get("/outbox/jobs")).headers["location"].startswith("/outbox/login")
        await client.post("/outbox/login", data={"key": key})
        assert str(id) in (await client.get("/outbox/jobs")).text


async def test_a_handler_goes_on_in_the_trace_of_the_request(
    sessions: async_sessionmaker[AsyncSession], engine: AsyncEngine, database_url: str
) -> None:
    example = load(ROOT / "docs/examples/tracing.py")
    trace = "0af7651916cd43dd8448eb211c80319c"
    transport = httpx2.ASGITransport(example.shop(sessions))
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
        id = UUID((await client.post("/orders/7", headers=headers)).json())
    async with working(example.outbox, database_url, queues={"mail": 1}):
        await drained(engine)
    job = await read(engine, id)
    assert (job.result, job.trace_id) == (trace, trace)
