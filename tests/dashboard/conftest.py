"""An application with the dashboard, jobs of every kind in its database, and a browser."""

import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import pytest
from fastapi import FastAPI
from playwright.async_api import Browser, async_playwright
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from outbox import Outbox, keys, queue, schedule
from outbox.batch import Batch, BatchSummary
from outbox.dashboard import outbox_dashboard
from outbox.fastapi import api_keys, local_only, outbox_router, problem_handlers
from outbox.keys import Scope
from outbox.schedule import Schedule
from tests.factories import WORKER, plant
from tests.service.servers import serving

Sessions = async_sessionmaker[AsyncSession]

ERROR = {
    "attempt": 1,
    "fence": 1,
    "at": "2026-01-01T00:00:00+00:00",
    "type": "ValueError",
    "message": "no such order",
    "traceback": "Traceback (most recent call last):\nValueError: no such order",
    "worker_id": str(WORKER),
}


@pytest.fixture
def outbox() -> Outbox:
    """A few tasks."""
    outbox = Outbox()

    @outbox.task()
    async def noop(n: int = 0) -> int:
        return n

    @outbox.task()
    async def summarize(batch: BatchSummary) -> None: ...

    @outbox.task(queue="mail")
    async def send_receipt(order_id: int) -> None: ...

    return outbox


def application(outbox: Outbox, sessions: Sessions, **options: Any) -> FastAPI:
    """The dashboard beside the API."""
    app = FastAPI()
    problem_handlers(app)
    app.include_router(outbox_router(outbox, sessions, **options))
    app.include_router(outbox_dashboard(outbox, sessions, **options))
    return app


@pytest.fixture
async def client(outbox: Outbox, sessions: Sessions) -> AsyncIterator[httpx2.AsyncClient]:
    """A client on this machine, to whom all is open."""
    app = application(outbox, sessions, access=local_only)
    async with app.router.lifespan_context(app):
        transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            yield client


@pytest.fixture
async def guarded(outbox: Outbox, sessions: Sessions) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of a dashboard that wants keys."""
    app = application(outbox, sessions, access=api_keys(sessions))
    async with app.router.lifespan_context(app):
        transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://shop.test") as client:
            yield client


@pytest.fixture
async def url(outbox: Outbox, sessions: Sessions) -> AsyncIterator[str]:
    """The address of a real server."""
    async with serving(application(outbox, sessions, access=local_only)) as url:
        yield f"{url}/outbox"


async def make_key(sessions: Sessions, *scopes: Scope, tenant: str | None = None) -> str:
    """A key that opens this."""
    async with sessions.begin() as session:
        _, key = await keys.create(session, "tester", scopes, tenant=tenant)
    return key


async def furnish(engine: AsyncEngine, sessions: Sessions, outbox: Outbox, word: str = "plain") -> dict[str, UUID]:
    """Something on every page, with this word in every text that it can stand in; the ids of what has one.

    Every kind of job, a flow in a batch, schedules with ticks, a worker, statistics, a backlog, a key, an audit.
    """
    texts: dict[str, Any] = {
        "task": word,
        "queue": word,
        "payload": {word: [word, {word: None}]},
        "tags": [word],
        "limit_key": word,
        "tenant": word,
    }
    failed = {"errors": [ERROR | {"type": word, "message": word, "traceback": word}]}
    ids = {kind: await plant(engine, kind, **texts) for kind in ("scheduled", "cancelled")}
    progress = {"done": 3, "total": 7, "message": word}
    ids["running"] = await plant(engine, "running", **texts, progress=progress)
    ids["pending"] = await plant(engine, **texts, group_key=word)
    ids["retrying"] = await plant(engine, "retrying", **texts | failed)
    ids["failed"] = await plant(engine, "failed", **texts | failed, key=word)
    ids["succeeded"] = await plant(engine, "succeeded", **texts, result={word: word}, checkpoint={word: word})
    async with sessions.begin() as session:
        first = [outbox["noop"].job(n) for n in range(2)]
        last = outbox["noop"].options(after=first).job(9)
        batch = Batch(word, [*first, last], on_complete=outbox["summarize"]).enqueue(session)
        await schedule.put(session, Schedule(name=word, job=outbox["noop"].job(1), cron="*/5 * * * *"))
        await queue.pause(session, word)
        await session.execute(_HISTORY, {"word": word, "job": ids["failed"], "worker": WORKER})
    ids["batch"], ids["flow"] = batch.id, last.id
    return ids


_HISTORY = text(
    """
    with ticked as (
        insert into outbox.tick (schedule, nominal, job_id) values (:word, now() - interval '5 minutes', :job)
    ), worked as (
        insert into outbox.worker (id, host, pid, queues, tasks, lease)
        values (:worker, :word, 7, jsonb_build_object(cast(:word as text), 3), jsonb_build_object('noop', 1), 3600)
    ), counted as (
        insert into outbox.statistic (seconds, starts_at, queue, task, outcome, count, waits, runs)
        select seconds, date_bin(make_interval(secs => seconds), now() - interval '2 minutes', 'epoch'), :word, :word,
               outcome, 5, '{0,5}', '{0,0,5}'
        from (values (60), (600), (3600)) span (seconds), (values ('succeeded'), ('failed')) ended (outcome)
    ), stood as (
        insert into outbox.backlog (at, queue, ready, scheduled, running, waited)
        values (date_bin('1 minute', now() - interval '2 minutes', 'epoch'), :word, 40, 1, 2, 3.5)
    )
    insert into outbox.audit (actor, tenant, action, target, detail)
    values (:word, :word, :word, :word, jsonb_build_object(cast(:word as text), cast(:word as text)))
    """
)


def chromium() -> str | None:
    """Where a browser is."""
    return os.environ.get("OUTBOX_TEST_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    """A headless Chromium, the one of this machine."""
    path = chromium()
    if path is None:
        pytest.skip("no Chromium: install the package chromium, or say where it is by OUTBOX_TEST_CHROMIUM")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        await browser.close()


@pytest.fixture(scope="session")
def pictures() -> Path:
    """Where screenshots are kept."""
    folder = Path(__file__).parents[2] / "build" / "dashboard"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
