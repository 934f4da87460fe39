"""Those who wait for a job: conditional requests, long polls and streams, on a real server."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from outbox import State, claim
from outbox.connection import Link
from outbox.fastapi import streams
from outbox.outcome import Finished
from outbox.settings import WorkerSettings
from tests.factories import held, new_id, plant
from tests.service.servers import service, serving
from tests.waiting import eventually, until

ROOT = Path(__file__).parents[2]


@pytest.fixture
async def link(database_url: str) -> AsyncIterator[Link]:
    link = Link(database_url, WorkerSettings(), "test")
    yield link
    await link.close()


@pytest.fixture
async def remote(app: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the application over a real connection, as streams need it."""
    async with serving(app) as url, httpx2.AsyncClient(base_url=url, timeout=30) as client:
        yield client


async def finish(link: Link, id: object, result: str = '"done"') -> None:
    assert await claim.settle(link, [(held(id), Finished(State.SUCCEEDED, result))]) == []  # type: ignore[arg-type]


async def events_of(response: httpx2.Response) -> AsyncIterator[tuple[str, str, Any]]:
    event, id, data = "", "", ""
    async for line in response.aiter_lines():
        field, _, value = line.partition(": ")
        if field == "event":
            event = value
        elif field == "id":
            id = value
        elif field == "data":
            data = value
        elif not line and data:
            yield event, id, json.loads(data)
            event = id = data = ""


# Conditional requests.


async def test_what_has_not_changed_is_not_sent_again(
    client: httpx2.AsyncClient, engine: AsyncEngine, link: Link
) -> None:
    id = await plant(engine, "running")
    first = await client.get(f"/v1/jobs/{id}")
    tag = first.headers["etag"]
    assert first.headers["cache-control"] == "private, no-cache"
    assert "Authorization" in first.headers["vary"]
    assert first.headers["retry-after"] == "1"
    for known in (tag, f'"other", {tag}', f"W/{tag}", "*"):
        again = await client.get(f"/v1/jobs/{id}", headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    await finish(link, id)
    now = await client.get(f"/v1/jobs/{id}", headers={"If-None-Match": tag})
    assert (now.status_code, now.json()["state"]) == (200, "succeeded")
    assert now.headers["etag"] != tag
    assert "retry-after" not in now.headers


async def test_a_renewed_lease_is_no_change(
    client: httpx2.AsyncClient, engine: AsyncEngine, connection: AsyncConnection
) -> None:
    id = await plant(engine, "running")
    tag = (await client.get(f"/v1/jobs/{id}")).headers["etag"]
    await connection.execute(text("update outbox.live_job set lease_until = lease_until + interval '1 minute'"))
    assert (await client.get(f"/v1/jobs/{id}", headers={"If-None-Match": tag})).status_code == 304


# Long polls.


async def test_a_long_poll_answers_when_the_job_has_ended(
    client: httpx2.AsyncClient, engine: AsyncEngine, link: Link, connection: AsyncConnection
) -> None:
    id = await plant(engine, "running")
    waiting = asyncio.create_task(client.get(f"/v1/jobs/{id}", headers={"Prefer": "wait=30"}))
    await asyncio.sleep(0.3)
    await connection.execute(text("update outbox.live_job set progress = '{\"done\": 1}'"))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    await finish(link, id)
    answer = await waiting
    assert (answer.status_code, answer.json()["result"]) == (200, "done")
    assert answer.headers["preference-applied"] == "wait=30"


async def test_with_a_tag_it_answers_at_the_next_change(
    client: httpx2.AsyncClient, engine: AsyncEngine, connection: AsyncConnection
) -> None:
    id = await plant(engine, "running")
    tag = (await client.get(f"/v1/jobs/{id}")).headers["etag"]
    headers = {"Prefer": "respond-async, wait=30", "If-None-Match": tag}
    waiting = asyncio.create_task(client.get(f"/v1/jobs/{id}", headers=headers))
    await asyncio.sleep(0.3)
    await connection.execute(text("update outbox.live_job set progress = '{\"done\": 1}'"))
    answer = await waiting
    assert (answer.status_code, answer.json()["progress"]["done"]) == (200, 1)
    over = await client.get(f"/v1/jobs/{id}", headers={"Prefer": "wait=1", "If-None-Match": answer.headers["etag"]})
    assert over.status_code == 304


async def test_what_has_ended_is_not_waited_for(client: httpx2.AsyncClient, engine: AsyncEngine) -> None:
    id = await plant(engine, "succeeded")
    answer = await asyncio.wait_for(client.get(f"/v1/jobs/{id}", headers={"Prefer": "wait=60"}), 10)
    assert answer.json()["state"] == "succeeded"


async def test_a_wait_that_is_over_answers_how_it_is(client: httpx2.AsyncClient, engine: AsyncEngine) -> None:
    id = await plant(engine)
    answer = await client.get(f"/v1/jobs/{id}", headers={"Prefer": "wait=1"})
    assert (answer.status_code, answer.json()["state"]) == (200, "pending")


@pytest.mark.parametrize(
    "prefer", ["", "wait", "wait=", "wait=-1", "wait=x", "waiting=9", "handling=lenient", "wait=0"]
)
async def test_a_preference_that_says_nothing_is_passed_over(
    client: httpx2.AsyncClient, engine: AsyncEngine, prefer: str
) -> None:
    id = await plant(engine)
    answer = await asyncio.wait_for(client.get(f"/v1/jobs/{id}", headers={"Prefer": prefer}), 10)
    assert answer.status_code == 200
    assert "preference-applied" not in answer.headers


async def test_who_waits_holds_no_connection(
    client: httpx2.AsyncClient, engine: AsyncEngine, link: Link, connection: AsyncConnection
) -> None:
    id = await plant(engine, "running")
    waiting = [asyncio.create_task(client.get(f"/v1/jobs/{id}", headers={"Prefer": "wait=30"})) for _ in range(200)]
    await asyncio.sleep(1)
    assert not any(each.done() for each in waiting)
    # The pool has fifteen; all would be taken, and this would wait for one.
    other = await asyncio.wait_for(client.get(f"/v1/jobs/{id}"), 5)
    assert other.status_code == 200
    await finish(link, id)
    answers = await asyncio.gather(*waiting)
    assert {answer.json()["state"] for answer in answers} == {"succeeded"}


# Streams.


async def test_a_stream_tells_every_change_and_ends_with_the_job(
    remote: httpx2.AsyncClient, engine: AsyncEngine, link: Link, connection: AsyncConnection
) -> None:
    id = await plant(engine, "running")
    seen: list[tuple[str, str, Any]] = []
    async with remote.stream("GET", f"/v1/jobs/{id}/events") as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        async for event in events_of(response):
            seen.append(event)
            if len(seen) == 1:
                await connection.execute(text("update outbox.live_job set progress = '{\"done\": 7}'"))
            elif len(seen) == 2:
                await finish(link, id)
    assert [event for event, _, _ in seen] == ["job", "job", "done"]
    assert seen[1][2]["progress"]["done"] == 7
    assert seen[2][2]["result"] == "done"
    assert len({id for _, id, _ in seen}) == 3


async def test_who_comes_back_hears_only_what_is_new(
    remote: httpx2.AsyncClient, engine: AsyncEngine, link: Link
) -> None:
    id = await plant(engine, "running")
    async with remote.stream("GET", f"/v1/jobs/{id}/events") as response:
        _, heard, _ = await anext(events_of(response))
    async with remote.stream("GET", f"/v1/jobs/{id}/events", headers={"Last-Event-ID": heard}) as response:
        await finish(link, id)
        seen = [event async for event in events_of(response)]
    assert [event for event, _, _ in seen] == ["done"]
    again = await remote.get(f"/v1/jobs/{id}/events", headers={"Last-Event-ID": seen[-1][1]})
    assert again.status_code == 410


async def test_a_job_that_is_not_there_has_no_stream(remote: httpx2.AsyncClient) -> None:
    answer = await remote.get(f"/v1/jobs/{new_id()}/events")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")


async def test_a_job_that_goes_ends_its_stream(
    remote: httpx2.AsyncClient, engine: AsyncEngine, connection: AsyncConnection
) -> None:
    id = await plant(engine)
    seen = []
    async with remote.stream("GET", f"/v1/jobs/{id}/events") as response:
        async for event, _, _ in events_of(response):
            seen.append(event)
            await connection.execute(text("delete from outbox.live_job"))
    assert seen == ["job", "gone"]


async def test_too_many_streams_are_refused(
    remote: httpx2.AsyncClient, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "STREAMS", 1)
    id = await plant(engine)
    async with remote.stream("GET", f"/v1/jobs/{id}/events") as response:
        reading = events_of(response)
        await anext(reading)
        refused = await remote.get(f"/v1/jobs/{id}/events")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "10")

    async def free_again() -> bool:
        async with remote.stream("GET", f"/v1/jobs/{id}/events") as response:
            return response.status_code == 200

    await eventually(free_again)


async def test_many_that_come_at_once_are_counted_each(
    remote: httpx2.AsyncClient, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "STREAMS", 3)
    id = await plant(engine)
    given_up = asyncio.Event()

    async def one() -> int:
        async with remote.stream("GET", f"/v1/jobs/{id}/events") as response:
            if response.status_code == 200:
                await given_up.wait()
            return response.status_code

    asking = [asyncio.create_task(one()) for _ in range(30)]
    await until(lambda: sum(each.done() for each in asking) >= 27)
    given_up.set()
    assert sorted(await asyncio.gather(*asking)) == [200] * 3 + [503] * 27


async def test_what_is_refused_is_not_counted_as_open(
    remote: httpx2.AsyncClient, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "STREAMS", 1)
    for _ in range(3):
        assert (await remote.get(f"/v1/jobs/{new_id()}/events")).status_code == 404


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_open_streams_and_polls_do_not_keep_a_server_from_stopping(
    database_url: str, engine: AsyncEngine, tmp_path: Path, number: signal.Signals
) -> None:
    id = await plant(engine)
    with service(database_url, tmp_path) as (url, process):
        async with httpx2.AsyncClient(base_url=url, timeout=60) as client:
            polling = asyncio.create_task(client.get(f"/v1/jobs/{id}", headers={"Prefer": "wait=60"}))
            async with client.stream("GET", f"/v1/jobs/{id}/events") as response:
                reading = events_of(response)
                await anext(reading)
                process.send_signal(number)
                assert [event async for event in reading] == []
            assert (await polling).json()["state"] == "pending"
        ended = await asyncio.to_thread(process.wait, 20)
    assert ended in (0, -number)
