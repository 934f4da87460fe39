"""Schedules over HTTP: made, changed, paused, fired and deleted; and the one of the service's own."""

from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import httpx2
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from api.handlers import outbox
from outbox import State
from tests.service.conftest import Work

PATH = "/v1/schedules/every-night"
NIGHTLY: dict[str, Any] = {"task": "demo_step", "arguments": {"steps": 1}, "cron": "30 2 * * *", "tz": "Europe/Berlin"}


async def test_a_schedule_is_made_changed_and_deleted(client: httpx2.AsyncClient) -> None:
    made = await client.put(PATH, json=NIGHTLY)
    assert made.status_code == 200, made.text
    body = made.json()
    assert (body["name"], body["arguments"], body["declared"]) == ("every-night", {"steps": 1}, False)
    upcoming = [datetime.fromisoformat(each) for each in body["upcoming"]]
    assert len(upcoming) == 5
    assert all(timedelta(hours=22) < later - sooner < timedelta(hours=26) for sooner, later in pairwise(upcoming))
    assert (await client.get(PATH)).json() == body

    changed = await client.put(PATH, json=NIGHTLY | {"cron": "@hourly", "queue": "demo"})
    assert changed.json()["cron"] == "@hourly"
    listed = (await client.get("/v1/schedules")).json()["data"]
    assert [each["name"] for each in listed] == ["every-night"]

    assert (await client.delete(PATH)).status_code == 204
    gone = await client.get(PATH)
    assert (gone.status_code, gone.headers["content-type"]) == (404, "application/problem+json")


async def test_paused_it_says_no_moments_and_resumed_it_does(client: httpx2.AsyncClient) -> None:
    await client.put(PATH, json=NIGHTLY)
    paused = (await client.post(f"{PATH}/pause")).json()
    assert paused["paused_at"] is not None
    assert paused["upcoming"] == []
    resumed = (await client.post(f"{PATH}/resume")).json()
    assert resumed["paused_at"] is None
    assert len(resumed["upcoming"]) == 5


async def test_fired_by_hand_it_answers_with_the_job(client: httpx2.AsyncClient, work: Work) -> None:
    await client.put(PATH, json=NIGHTLY)
    fired = await client.post(f"{PATH}/fire")
    assert fired.status_code == 202
    assert fired.headers["location"] == fired.json()["links"]["self"]
    (job,) = await work(fired.json()["id"])
    assert (job.state, job.payload) == (State.SUCCEEDED, {"steps": 1})


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"cron": "61 * * * *"}, "$.body.cron"),
        ({"cron": "0 0 30 2 *"}, "$.body.cron"),
        ({"tz": "Mars/Olympus"}, "$.body.tz"),
        ({"task": "no such task"}, "$.body.task"),
        ({"arguments": {"steps": "many"}}, "$.steps"),
        ({"arguments": {"stepz": 1}}, "$"),
        ({"catch_up": "some"}, "$.body.catch_up"),
        ({"jitter": -1}, "$.body.jitter"),
        ({"queue": ""}, "$.body.queue"),
        ({"what": 1}, "$.body.what"),
    ],
)
async def test_nonsense_is_refused_with_its_path(client: httpx2.AsyncClient, change: dict[str, Any], path: str) -> None:
    answer = await client.put(PATH, json=NIGHTLY | change)
    assert answer.status_code == 422, answer.text
    assert [each["path"] for each in answer.json()["errors"]] == [path]
    assert (await client.get(PATH)).status_code == 404


@pytest.mark.parametrize("verb", ["pause", "resume", "fire"])
async def test_one_that_is_not_there_is_404(client: httpx2.AsyncClient, verb: str) -> None:
    assert (await client.post(f"{PATH}/{verb}")).status_code == 404
    assert (await client.delete(PATH)).status_code == 404


async def test_the_report_of_yesterday_is_made_every_morning_and_once(
    client: httpx2.AsyncClient, work: Work, connection: AsyncConnection
) -> None:
    [declared] = outbox.schedules
    assert (declared.name, declared.cron, declared.tz) == ("report_yesterday", "0 6 * * *", "Europe/Berlin")
    by_hand = {"task": "report_yesterday", "arguments": {"at": "2026-03-02T05:00:00Z"}, "cron": "@daily"}
    await client.put(PATH, json=by_hand)
    for _ in range(2):
        fired = await client.post(f"{PATH}/fire")
        [job] = await work(fired.json()["id"])
        assert job.state is State.SUCCEEDED, job.errors
    rows = (await connection.execute(text("select first_day, last_day from reports"))).all()
    assert [(str(row.first_day), str(row.last_day)) for row in rows] == [("2026-03-01", "2026-03-01")]
