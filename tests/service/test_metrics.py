"""What Prometheus reads: from the service how queues and workers stand, from each worker what it does."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from api.app import create_app
from api.handlers import outbox as shop
from api.settings import Settings
from outbox import Outbox, State, heartbeat, keys, probe, queue, statistic
from outbox.connection import Link
from outbox.fastapi import api_keys, metrics, problem_handlers
from outbox.fastapi.metrics import outbox_metrics
from outbox.keys import Scope
from outbox.meter import MOST_QUEUES
from outbox.presence import Presence
from outbox.settings import WorkerSettings
from outbox.worker import Worker
from tests.database.workers import in_state
from tests.factories import ago, new_id, plant, plant_many
from tests.scraping import Samples, scraped, series
from tests.service import metered
from tests.service.servers import serving
from tests.waiting import eventually, until

ROOT = Path(__file__).parents[2]

Sessions = async_sessionmaker[AsyncSession]

OUTBOX = Outbox()


@OUTBOX.task(queue="mail")
async def noop(n: int = 0) -> None: ...


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """An engine on the test's database, for these tests need no mail server."""
    engine = create_async_engine(database_url)
    yield engine
    await engine.dispose()


@pytest.fixture
async def link(database_url: str) -> AsyncIterator[Link]:
    """A worker's connection."""
    link = Link(database_url, WorkerSettings(), "test")
    yield link
    await link.close()


async def key(sessions: Sessions, *scopes: Scope, tenant: str | None = None) -> dict[str, str]:
    async with sessions.begin() as session:
        _, made = await keys.create(session, "prometheus", scopes, tenant=tenant)
    return {"Authorization": f"Bearer {made}"}


@asynccontextmanager
async def exporting(sessions: Sessions) -> AsyncIterator[httpx2.AsyncClient]:
    """A real server with nothing but the metrics, and a client that has a key."""
    app = FastAPI()
    problem_handlers(app)
    app.include_router(outbox_metrics(OUTBOX, sessions, access=api_keys(sessions)))
    headers = await key(sessions, Scope.READ)
    async with serving(app) as url, httpx2.AsyncClient(base_url=url, headers=headers, timeout=30) as client:
        yield client


async def scrape(client: httpx2.AsyncClient) -> Samples:
    answer = await client.get("/metrics")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return scraped(answer.text)


def of_queue(samples: Samples, name: str) -> dict[str, float]:
    """What is told of one queue, by the name or the state."""
    return {
        dict(labels).get("state", metric): value
        for (metric, labels), value in samples.items()
        if ("queue", name) in labels
    }


def queues(samples: Samples) -> set[str]:
    return {dict(labels)["queue"] for _, labels in samples if "queue" in dict(labels)}


# Who may.


async def test_the_service_tells_those_who_have_a_key_that_may_read(settings: Settings) -> None:
    app = create_app(settings.model_copy(update={"outbox_access": "keys"}))
    async with serving(app) as url, httpx2.AsyncClient(base_url=url) as client:
        engine = create_async_engine(settings.database_url)
        sessions = async_sessionmaker(engine)
        for headers, status in (
            ({}, 401),
            ({"Authorization": "Bearer obx_000000000000_wrong"}, 401),
            (await key(sessions, Scope.ENQUEUE), 403),
            (await key(sessions, Scope.READ, tenant="acme"), 403),
            (await key(sessions, Scope.ADMIN, tenant="acme"), 403),
        ):
            refused = await client.get("/metrics", headers=headers)
            assert (refused.status_code, refused.headers["content-type"]) == (status, "application/problem+json")
            assert "outbox_" not in refused.text
        answer = await client.get("/metrics", headers=await key(sessions, Scope.READ))
        assert answer.headers["cache-control"] == "no-store"
        assert queues(scraped(answer.text)) == {task.defaults.queue for task in shop} | {"other"}
        await engine.dispose()


async def test_without_access_only_this_machine_is_told(sessions: Sessions) -> None:
    app = FastAPI()
    app.include_router(outbox_metrics(OUTBOX, sessions))
    async with serving(app) as url, httpx2.AsyncClient(base_url=url) as client:
        assert (await client.get("/metrics")).status_code == 200
        assert (await client.get("/metrics", headers={"Host": "evil.example"})).status_code == 401


# What the tables tell.


async def test_how_queues_and_workers_stand(sessions: Sessions, engine: AsyncEngine, link: Link) -> None:
    for seconds in (90, 60, 30):
        await plant(engine, queue="mail", run_at=ago(seconds))
    await plant(engine, "scheduled", queue="mail")
    worker = new_id()
    for _ in range(2):
        await plant(engine, "running", queue="mail", worker_id=worker)
    await plant(engine, "running", queue="bulk", worker_id=worker)
    await Presence(id=worker, queues={"mail": 1, "bulk": 1}, tasks={"noop": 1}, lease=30.0).appear(link)
    gone = new_id()
    await Presence(id=gone, queues={"mail": 4}, tasks={}, lease=30.0).appear(link)
    await link.fetch("update outbox.worker set seen_at = now() - interval '31 seconds' where id = $1", gone)
    async with sessions.begin() as session:
        await queue.pause(session, "bulk")
    async with exporting(sessions) as client:
        told = await scrape(client)
    mail = of_queue(told, "mail")
    assert (mail["ready"], mail["scheduled"], mail["running"], mail["outbox_queue_paused"]) == (3, 1, 2, 0)
    assert 90 <= mail["outbox_queue_oldest_age_seconds"] < 150
    bulk = of_queue(told, "bulk")
    assert (bulk["ready"], bulk["running"], bulk["outbox_queue_paused"]) == (0, 1, 1)
    assert bulk["outbox_queue_oldest_age_seconds"] == 0
    assert set(of_queue(told, "other").values()) == {0}
    assert told[series("outbox_worker_slots", worker=str(worker))] == 2
    assert told[series("outbox_worker_busy", worker=str(worker))] == 2  # the third waits for a slot
    [seen_at] = await link.fetch("select extract(epoch from seen_at) as at from outbox.worker where id = $1", worker)
    seen = told[series("outbox_worker_last_heartbeat_timestamp_seconds", worker=str(worker))]
    assert seen == pytest.approx(float(seen_at["at"]))
    assert not [labels for _, labels in told if ("worker", str(gone)) in labels]


async def test_the_database_is_looked_at_once_however_many_ask(
    sessions: Sessions, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "FRESH", 1e6)
    looks = 0

    @event.listens_for(engine.sync_engine, "before_cursor_execute")
    def _note(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        nonlocal looks
        looks += "outbox.queue_state" in statement

    async with exporting(sessions) as client:
        answers = await asyncio.gather(*(scrape(client) for _ in range(20)))
        assert looks == 1
        assert all(each == answers[0] for each in answers)
        await plant(engine, queue="mail")
        assert of_queue(await scrape(client), "mail")["ready"] == 0
        assert looks == 1


async def test_a_look_is_good_for_five_seconds_and_no_longer(
    sessions: Sessions, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert metrics.FRESH == 5
    monkeypatch.setattr(metrics, "FRESH", 0.0)
    async with exporting(sessions) as client:
        assert of_queue(await scrape(client), "mail")["ready"] == 0
        await plant(engine, queue="mail")
        assert of_queue(await scrape(client), "mail")["ready"] == 1


async def test_a_database_that_does_not_answer_is_an_error_and_the_next_scrape_asks_again(
    sessions: Sessions, engine: AsyncEngine
) -> None:
    async with exporting(sessions) as client:
        async with engine.begin() as connection:
            await connection.execute(text("alter table outbox.backlog rename to gone"))
        assert (await client.get("/metrics")).status_code == 500
        async with engine.begin() as connection:
            await connection.execute(text("alter table outbox.gone rename to backlog"))
        assert queues(await scrape(client)) == {"mail", "other"}


_MANY = text(
    """
    insert into outbox.live_job (task, queue, run_at)
    select 'task ' || :mark || n, 'queue ' || :mark || (n % :queues), clock_timestamp() - interval '1 hour'
    from generate_series(1, :jobs) n
    """
)


@pytest.mark.parametrize("count", [1000, pytest.param(100_000, marks=pytest.mark.slow)])
async def test_however_many_tasks_and_queues_jobs_name_there_are_no_more_series(
    sessions: Sessions, engine: AsyncEngine, link: Link, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(metrics, "FRESH", 0.0)
    await plant_many(engine, 7, queue="mail")
    async with exporting(sessions) as client:
        few = await scrape(client)
        assert queues(few) == {"mail", "other"}
        many, more = [
            await after_more_jobs(client, engine, link, mark, count) for mark in "ba"
        ]  # new names, that sort first
    assert len(queues(many)) == MOST_QUEUES + 1
    assert len(many) == len(few) * len(queues(many)) // len(queues(few))
    assert more.keys() == many.keys()
    assert not [labels for _, labels in more if any("task" in part for pair in labels for part in pair)]
    ready = {name: of_queue(more, name)["ready"] for name in queues(more)}
    assert ready["mail"] == 7
    assert sum(ready.values()) == 2 * count + 7  # those without a label of their own are in the sum
    assert of_queue(more, "other")["outbox_queue_oldest_age_seconds"] >= 3600


async def after_more_jobs(
    client: httpx2.AsyncClient, engine: AsyncEngine, link: Link, mark: str, count: int
) -> Samples:
    """What is told when there are more jobs, each of a task of its own, and a worker has seen them."""
    async with engine.begin() as connection:
        await connection.execute(_MANY, {"mark": mark, "jobs": count, "queues": min(count, 3000)})
    await link.fetch("delete from outbox.backlog")
    await statistic.record(link)
    return await scrape(client)


async def test_queues_that_somebody_works_on_or_speaks_of_come_first(
    sessions: Sessions, engine: AsyncEngine, link: Link
) -> None:
    async with engine.begin() as connection:
        await connection.execute(_MANY, {"mark": "a", "jobs": 1000, "queues": 1000})
    await statistic.record(link)
    await Presence(id=new_id(), queues={"zz served": 1, "other": 1}, tasks={}, lease=30.0).appear(link)
    async with sessions.begin() as session:
        await queue.pause(session, "zz paused")
    async with exporting(sessions) as client:
        told = await scrape(client)
    assert queues(told) >= {"mail", "zz served", "zz paused", "other"}
    assert len(queues(told)) == MOST_QUEUES + 1
    assert of_queue(told, "zz paused")["outbox_queue_paused"] == 1


async def test_a_queue_that_is_paused_without_a_label_is_told_with_the_others(sessions: Sessions, link: Link) -> None:
    async with sessions.begin() as session:
        for n in range(MOST_QUEUES):
            await queue.pause(session, f"queue {n}")
    async with exporting(sessions) as client:
        told = await scrape(client)
    assert len(queues(told)) == MOST_QUEUES + 1
    assert of_queue(told, "other")["outbox_queue_paused"] == 1


# What a worker tells.


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@contextmanager
def metered_worker(database_url: str, folder: Path, *options: str) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """A worker in a process of its own that tells its metrics; their address, and the process."""
    port = free_port()
    command = [sys.executable, "-m", "outbox", "worker", "tests.service.metered:outbox", "-q", "mail:1"]
    environment = {**os.environ, "DATABASE_URL": database_url, metered.GO: str(folder / "go")}
    environment["OUTBOX_METRICS_PORT"] = str(port)
    process = subprocess.Popen([*command, *options], cwd=ROOT, env=environment)
    try:
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.kill()
        process.wait()


async def attempts(client: httpx2.AsyncClient) -> dict[tuple[str, str], float]:
    """How many attempts a worker tells of, by task and outcome."""
    return {
        (dict(labels)["task"], dict(labels)["outcome"]): value
        for (name, labels), value in (await scrape(client)).items()
        if name == "outbox_job_attempts_total" and value
    }


async def test_a_worker_tells_even_while_a_handler_holds_its_event_loop(
    engine: AsyncEngine, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "COUNT", 0.05)
    outbox, port = Outbox(), free_port()
    heard: dict[str, int] = {}

    @outbox.task()
    async def noop(n: int) -> None: ...

    @outbox.task()
    async def hold() -> None:
        for path in ("/metrics", "/livez", "/readyz"):
            heard[path] = httpx2.get(f"http://127.0.0.1:{port}{path}").status_code

    worker = Worker(outbox, database_url, WorkerSettings())
    server = probe.start(worker, "127.0.0.1", port)
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        assert (await client.get("/livez")).status_code == 200
        assert (await client.get("/readyz")).status_code == 503
        assert (await client.get("/")).status_code == 404
        await plant_many(engine, 5)
        running = asyncio.create_task(worker.run())

        async def told() -> bool:
            return await attempts(client) == {("noop", "succeeded"): 5}

        await eventually(told)
        await plant(engine, task="hold")
        await until(lambda: len(heard) == 3)
        worker.stop()
        assert await running
        assert await attempts(client) == {("noop", "succeeded"): 5, ("hold", "succeeded"): 1}
    assert set(heard.values()) == {200}
    server.shutdown()
    server.server_close()


@pytest.mark.slow
async def test_a_worker_process_tells_what_it_does_while_it_works(
    engine: AsyncEngine, database_url: str, tmp_path: Path
) -> None:
    with metered_worker(database_url, tmp_path) as (url, process):
        async with httpx2.AsyncClient(base_url=url, timeout=30) as client:
            for path in ("/livez", "/readyz"):
                await eventually(lambda path=path: answers(client, process, path))  # type: ignore[misc]
            for _ in range(3):
                await plant(engine, queue="mail", task="good", run_at=ago(100))
            await plant(engine, queue="mail", task="bad")

            async def all_told() -> bool:
                return sum((await attempts(client)).values()) == 5

            await eventually(all_told)
            assert await attempts(client) == {("good", "succeeded"): 3, ("bad", "retried"): 1, ("bad", "failed"): 1}
            good, told = {"queue": "mail", "task": "good"}, await scrape(client)
            assert told[series("outbox_job_wait_seconds_count", **good)] == 3
            assert told[series("outbox_job_wait_seconds_bucket", le="65.536", **good)] == 0
            assert told[series("outbox_job_wait_seconds_bucket", le="131.072", **good)] == 3
            assert told[series("outbox_job_duration_seconds_bucket", le="131.072", **good)] == 3
            assert told[series("outbox_leases_lost_total")] == 0
            page = (await client.get("/metrics")).text
            assert "shop_receipts_total 3.0" in page  # a handler's own
            assert "process_resident_memory_bytes" in page
            blocking = await plant(engine, queue="mail", task="blocks")
            await in_state(engine, blocking, State.RUNNING)
            for path in ("/metrics", "/livez", "/readyz"):
                assert await answers(client, process, path), path
            (tmp_path / "go").touch()
            process.terminate()
            await until(lambda: process.poll() is not None)
            assert process.returncode == 0


async def answers(client: httpx2.AsyncClient, process: "subprocess.Popen[bytes]", path: str) -> bool:
    """Whether the worker answers that all is well."""
    assert process.poll() is None
    try:
        return (await client.get(path)).status_code == 200
    except httpx2.TransportError:
        return False


async def worker_that_does_not_start(*arguments: str, given: str = "pass") -> tuple[int, str]:
    """Its exit status, and what it said."""
    program = f"import sys; {given}; from outbox.cli import main; main()"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, "worker", "api.handlers:outbox", *arguments),
        cwd=ROOT,
        env={**os.environ, "DATABASE_URL": "postgresql://127.0.0.1:1/none", "COLUMNS": "200", "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, said.decode()


async def test_a_port_that_is_taken_is_said_and_the_worker_does_not_start() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, said = await worker_that_does_not_start("--metrics-port", str(port))
    assert status == 78
    assert f"127.0.0.1, port {port}" in said
    assert "choose another --metrics-port" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("host", ["192.0.2.7", "a..b"])
async def test_a_host_that_is_not_this_machines_is_said_and_the_worker_does_not_start(host: str) -> None:
    status, said = await worker_that_does_not_start("--metrics-port", str(free_port()), "--metrics-host", host)
    assert (status, said.count("\n")) == (78, 1)
    assert "--metrics-host" in said


WITHOUT = "sys.modules['prometheus_client'] = None"


async def test_without_the_extra_it_is_said_what_to_install() -> None:
    status, said = await worker_that_does_not_start("--metrics-port", str(free_port()), given=WITHOUT)
    assert (status, said.count("\n")) == (78, 1)
    assert 'pip install "outbox[prometheus]"' in said


def test_nothing_but_the_metrics_needs_the_extra() -> None:
    program = f"""
import sys; {WITHOUT}
import outbox, outbox.worker, outbox.cli, outbox.cli.worker, outbox.dashboard, outbox.fastapi
from outbox import OutboxError
try:
    import outbox.fastapi.metrics
except OutboxError as exc:
    print(exc)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 'pip install "outbox[prometheus]"' in done.stdout
