"""Who may ask the service about its jobs: this machine, or who has a key; and it does not start half open."""

import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI

from api.app import create_app
from api.settings import Settings
from outbox.fastapi import access
from tests.service.servers import make_key, service

ROOT = Path(__file__).parents[2]

PUBLIC = {
    "/livez",
    "/readyz",
    "/v1/signups",
    "/v1/orders",
    "/v1/reports",
    "/v1/reports/{report_id}/download",
    "/v1/imports",
    "/v1/mailings",
    "/v1/payments/webhook",
    "/outbox/login",
    "/outbox/logout",
    "/outbox/static/{version}/{name}",
}
"""The demonstration's own business, open to everybody; a payment is signed. And the door of the dashboard."""

DOCUMENTATION = {"/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc"}
"""FastAPI's; it says how to ask, and answers nothing."""


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.7", "localhost.example"])
def test_it_does_not_start_for_other_machines_unless_somebody_says_who_may(host: str) -> None:
    # No database: it gives up before it looks for one.
    started = start(DATABASE_URL="postgresql://127.0.0.1:1/none", HOST=host)
    assert started.returncode == 78
    [line] = started.stderr.splitlines()
    assert "OUTBOX_ACCESS=keys" in line


def test_it_does_not_start_with_settings_that_make_no_sense_and_does_not_repeat_them() -> None:
    started = start(DATABASE_URL="mysql://me:canary@db/shop", OUTBOX_ACCESS="everybody")
    assert started.returncode == 78
    assert "outbox_access" in started.stderr
    assert "canary" not in started.stderr


def start(**settings: str) -> "subprocess.CompletedProcess[str]":
    """The service in a process that is to end by itself."""
    command, environment = [sys.executable, "-m", "api", "--port", "0"], {**os.environ, **settings}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60)


def test_with_keys_it_starts_for_other_machines_and_a_key_opens_it(database_url: str, tmp_path: Path) -> None:
    with service(database_url, tmp_path, HOST="0.0.0.0", OUTBOX_ACCESS="keys") as (url, _):
        assert httpx2.get(f"{url}/v1/jobs").status_code == 401
        key = make_key(database_url)
        assert httpx2.get(f"{url}/v1/jobs", headers={"Authorization": f"Bearer {key}"}).status_code == 200


def test_in_local_mode_only_its_own_name_is_answered(database_url: str, tmp_path: Path) -> None:
    with service(database_url, tmp_path) as (url, _):
        assert httpx2.get(f"{url}/v1/jobs").status_code == 200
        for foreign in ({"Host": "evil.example"}, {"X-Forwarded-For": "127.0.0.1"}):
            assert httpx2.get(f"{url}/v1/jobs", headers=foreign).status_code == 401


def test_nobody_gets_more_tries_by_saying_that_they_ask_for_others(database_url: str, tmp_path: Path) -> None:
    with service(database_url, tmp_path, OUTBOX_ACCESS="keys") as (url, _):
        statuses = [
            httpx2.get(
                f"{url}/v1/jobs",
                headers={"Authorization": f"Bearer obx_{n:012x}_x", "X-Forwarded-For": f"192.0.2.{n}"},
            ).status_code
            for n in range(2 * access.FAILURES.burst)
        ]
    assert statuses[: access.FAILURES.burst] == [401] * access.FAILURES.burst
    assert statuses[-1] == 429


async def test_that_only_this_machine_is_answered_is_said_once(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    def said() -> int:
        return [record.__dict__.get("event") for record in caplog.records].count("api_local_only")

    for app in (create_app(settings), create_app(settings)):
        before = said()
        async with app.router.lifespan_context(app):
            assert said() == before + 1
    app = create_app(settings.model_copy(update={"outbox_access": "keys"}))
    async with app.router.lifespan_context(app):
        assert said() == 2


@pytest.fixture
async def guarded(settings: Settings) -> AsyncIterator[FastAPI]:
    """The application with keys, started."""
    app = create_app(settings.model_copy(update={"outbox_access": "keys"}))
    async with app.router.lifespan_context(app):
        yield app


async def test_wrong_keys_by_the_api_and_by_the_login_are_counted_together(guarded: FastAPI) -> None:
    transport = httpx2.ASGITransport(guarded)
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        for n in range(2 * access.FAILURES.burst):
            await client.get("/v1/jobs", headers={"Authorization": f"Bearer obx_{n:012x}_x"})
        assert (await client.post("/outbox/login", data={"key": "obx_000000000000_x"})).status_code == 429


async def test_without_a_key_every_route_is_closed_but_those_of_the_business(guarded: FastAPI) -> None:
    transport = httpx2.ASGITransport(guarded)
    asked = 0
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        for path, methods in routes(guarded):
            if path in PUBLIC | DOCUMENTATION:
                continue
            # What it is asked for does not matter: who asks is looked at first.
            address = re.sub(r"{\w+}", "x", path)
            for method in methods:
                answer = await client.request(method, address)
                if path.startswith("/outbox") and path != "/outbox/live":  # people are sent to where they can log in
                    assert (answer.status_code, answer.headers["location"][:13]) == (303, "/outbox/login"), path
                else:
                    assert (answer.status_code, answer.headers["content-type"]) == (401, "application/problem+json"), (
                        path
                    )
                asked += 1
    assert asked > 30
    assert {path for path, _ in routes(guarded)} >= PUBLIC | DOCUMENTATION


def routes(app: FastAPI) -> list[tuple[str, set[str]]]:
    """Every route of the application, those that no document names included."""
    found: list[tuple[str, set[str]]] = []
    for route in app.routes:
        inner = getattr(route, "effective_route_contexts", None)  # of a router that was included
        each: Any
        for each in inner() if inner is not None else [route]:
            path: str = getattr(each, "path_format", None) or each.path
            found.append((path, set(each.methods)))
    return found
