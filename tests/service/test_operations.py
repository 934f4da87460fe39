"""What operators do to jobs and queues over HTTP, and what callers without a session enqueue."""

from typing import Any
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from tests.factories import new_id, plant, read


async def posted(client: httpx2.AsyncClient, path: str, **body: Any) -> dict[str, Any]:
    answer = await client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


# Jobs, one or many.


async def test_run_now(client: httpx2.AsyncClient, engine: AsyncEngine) -> None:
    id = await plant(engine, "scheduled")
    assert (await client.post(f"/v1/jobs/{id}/run")).status_code == 200
    job = await read(engine, id)
    assert (await client.get(f"/v1/jobs/{id}/explain")).json()["reasons"][0]["code"] != "scheduled"
    assert job.fence == 0
    for kind in ("running", "failed"):
        refused = await client.post(f"/v1/jobs/{await plant(engine, kind)}/run")
        assert (refused.status_code, refused.json()["allowed"]) == (409, ["pending"])


async def test_change_the_priority(client: httpx2.AsyncClient, engine: AsyncEngine) -> None:
    id = await plant(engine)
    before = await read(engine, id)
    answer = await client.patch(f"/v1/jobs/{id}", json={"priority": 3})
    assert answer.json()["priority"] == 3
    # A claim that has passed this position in the other priority must find it.
    assert (await read(engine, id)).run_at > before.run_at
    assert (await client.patch(f"/v1/jobs/{id}", json={"priority": 4})).status_code == 422
    assert (await client.patch(f"/v1/jobs/{await plant(engine, 'failed')}", json={"priority": 1})).status_code == 409


async def test_discard(client: httpx2.AsyncClient, engine: AsyncEngine) -> None:
    id = await plant(engine, "failed")
    assert (await client.delete(f"/v1/jobs/{id}")).status_code == 204
    assert (await client.get(f"/v1/jobs/{id}")).status_code == 404
    assert (await client.delete(f"/v1/jobs/{id}")).status_code == 404
    for kind in ("pending", "running"):
        assert (await client.delete(f"/v1/jobs/{await plant(engine, kind)}")).status_code == 409


@pytest.mark.parametrize(
    ("action", "kinds", "after"),
    [
        ("cancel", ["pending", "scheduled"], "cancelled"),
        ("retry", ["failed", "cancelled"], "pending"),
        ("run", ["scheduled"], "pending"),
    ],
)
@pytest.mark.parametrize("by", ["ids", "filter"])
async def test_many_at_once(
    client: httpx2.AsyncClient, engine: AsyncEngine, action: str, kinds: list[str], after: str, by: str
) -> None:
    ids = [await plant(engine, kind, tags=["these"]) for kind in kinds for _ in range(3)]
    others = [await plant(engine, "succeeded", tags=["these"]), await plant(engine, kinds[0])]
    what: dict[str, Any] = {"filter": {"tag": ["these"]}}
    if by == "ids":
        what = {"ids": [str(id) for id in (*ids, others[0], new_id())]}
    dry = await posted(client, f"/v1/jobs/bulk/{action}", **what, dry_run=True)
    assert (dry["matched"], dry["dry_run"]) == (len(ids), True)
    before = [await read(engine, id) for id in others]
    done = await posted(client, f"/v1/jobs/bulk/{action}", **what)
    assert (done["changed"], done["next_cursor"]) == (len(ids), None)
    assert {(await read(engine, id)).state.value for id in ids} == {after}
    assert [await read(engine, id) for id in others] == before


async def test_those_that_run_are_asked_to_stop(client: httpx2.AsyncClient, engine: AsyncEngine) -> None:
    ids = [await plant(engine, "running") for _ in range(2)]
    done = await posted(client, "/v1/jobs/bulk/cancel", ids=[str(id) for id in ids])
    assert done["changed"] == 2
    assert all([(await read(engine, id)).cancel_requested_at is not None for id in ids])


async def test_many_in_portions_say_that_there_are_more(client: httpx2.AsyncClient, engine: AsyncEngine) -> None:
    ids = [await plant(engine, "failed") for _ in range(5)]
    portions, cursor = [], None
    while True:
        done = await posted(client, "/v1/jobs/bulk/discard", filter={"state": ["failed"]}, limit=2, cursor=cursor)
        portions.append(done["changed"])
        if (cursor := done["next_cursor"]) is None:
            break
    assert portions == [2, 2, 1]
    assert (await client.get(f"/v1/jobs/{ids[0]}")).status_code == 404


async def test_the_priority_of_many(client: httpx2.AsyncClient, engine: AsyncEngine) -> None:
    ids = [await plant(engine) for _ in range(3)]
    assert (await posted(client, "/v1/jobs/bulk/priority", filter={}, priority=0))["changed"] == 3
    assert {(await read(engine, id)).priority for id in ids} == {0}
    missing = await client.post("/v1/jobs/bulk/priority", json={"filter": {}})
    assert (missing.status_code, missing.json()["errors"][0]["path"]) == (422, "$.body.priority")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"ids": []},
        {"ids": [str(new_id())], "filter": {}},
        {"ids": ["x"]},
        {"filter": {"state": ["lost"]}},
        {"filter": {"arguments": "[1]"}},
        {"filter": {"arguments": "{"}},
        {"filter": {}, "limit": 10_001},
        {"filter": {}, "more": 1},
    ],
)
async def test_what_makes_no_sense_is_refused(client: httpx2.AsyncClient, body: dict[str, Any]) -> None:
    answer = await client.post("/v1/jobs/bulk/retry", json=body)
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")


async def test_groups_go_on_when_many_of_their_jobs_are_cancelled(
    client: httpx2.AsyncClient, engine: AsyncEngine, connection: AsyncConnection
) -> None:
    ids = [await plant(engine, group_key=f"g{n % 3}", blocked="new") for n in range(12)]
    await connection.execute(text("select outbox.admit(100, '-infinity')"))
    await posted(client, "/v1/jobs/bulk/cancel", ids=[str(id) for id in ids[:6]])
    open_ = (
        await connection.execute(text("select id from outbox.live_job where blocked is null order by id"))
    ).scalars()
    assert list(open_) == ids[6:9]


# Queues and limits.


async def test_how_queues_stand(client: httpx2.AsyncClient, engine: AsyncEngine, connection: AsyncConnection) -> None:
    for kind in ("pending", "pending", "scheduled", "running", "failed"):
        await plant(engine, kind, queue="mail")
    await plant(engine, queue="mail", limited=True, limit_key="k")
    await plant(engine, queue="other", priority=0)
    await plant(engine, queue="blocked", group_key="g", blocked="new")
    assert (await client.post("/v1/queues/paused/pause")).status_code == 204
    assert (await client.put("/v1/queues/mail/ceiling", json={"ceiling": 100})).status_code == 204
    queues = {each["name"]: each for each in (await client.get("/v1/queues")).json()["data"]}
    mail = queues["mail"]
    assert (mail["ready"], mail["scheduled"], mail["running"], mail["ceiling"]) == (3, 1, 1, 100)
    assert mail["oldest"] is not None
    assert queues["other"]["ready"] == 1
    assert queues["paused"]["paused_at"] is not None
    assert (queues["paused"]["ready"], queues["paused"]["oldest"]) == (0, None)
    assert "blocked" not in queues
    assert (await client.post("/v1/queues/paused/resume")).status_code == 204
    queues = {each["name"]: each for each in (await client.get("/v1/queues")).json()["data"]}
    assert queues["paused"]["paused_at"] is None


async def test_counts_have_a_bound(
    client: httpx2.AsyncClient, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from outbox import queue

    monkeypatch.setattr(queue, "MOST", 5)
    for _ in range(4):
        for priority in (0, 1):
            await plant(engine, priority=priority)
            await plant(engine, "scheduled", priority=priority)
    [only] = (await client.get("/v1/queues")).json()["data"]
    assert (only["ready"], only["scheduled"]) == (5, 5)


async def test_limits_are_set_and_removed(client: httpx2.AsyncClient, engine: AsyncEngine) -> None:
    assert (await client.put("/v1/limits/queue/mail", json={"concurrency": 3})).status_code == 204
    put = await client.put("/v1/limits/task/send", params={"per_key": True}, json={"rate": 2, "burst": 5})
    assert put.status_code == 204
    rules = (await client.get("/v1/limits")).json()["data"]
    assert [(rule["scope"], rule["name"], rule["per_key"], rule["concurrency"], rule["rate"]) for rule in rules] == [
        ("queue", "mail", False, 3, None),
        ("task", "send", True, None, 2.0),
    ]
    assert (await client.put("/v1/limits/queue/mail", json={})).status_code == 422
    assert (await client.put("/v1/limits/worker/mail", json={"concurrency": 3})).status_code == 422
    assert (await client.delete("/v1/limits/queue/mail")).status_code == 204
    assert len((await client.get("/v1/limits")).json()["data"]) == 1


# Enqueuing without a session.


async def test_a_job_is_enqueued_by_the_name_of_its_task(client: httpx2.AsyncClient, engine: AsyncEngine) -> None:
    tasks = {each["name"]: each for each in (await client.get("/v1/tasks")).json()["data"]}
    assert tasks["send_welcome"]["arguments"]["properties"].keys() >= {"user_id"}
    body = {"task": "send_welcome", "arguments": {"user_id": str(new_id())}, "delay": 60, "tags": ["by hand"]}
    answer = await client.post("/v1/jobs", json=body | {"priority": 3})
    assert answer.status_code == 202
    job = await read(engine, UUID(answer.json()["id"]))
    assert (job.task, job.priority, job.tags, job.payload) == ("send_welcome", 3, ["by hand"], body["arguments"])
    assert answer.headers["location"] == f"/v1/jobs/{job.id}"


async def test_many_are_enqueued_or_none(
    client: httpx2.AsyncClient, engine: AsyncEngine, connection: AsyncConnection
) -> None:
    good = {"task": "send_welcome", "arguments": {"user_id": str(new_id())}}
    bad = {"task": "send_welcome", "arguments": {"user_id": "x"}}
    answer = await client.post("/v1/jobs/batch", json={"jobs": [good] * 3})
    assert (answer.status_code, len(answer.json()["data"])) == (202, 3)
    refused = await client.post("/v1/jobs/batch", json={"jobs": [good, good, bad]})
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["path"] == "$.body.jobs[2].arguments.user_id"
    assert (await connection.execute(text("select count(*) from outbox.live_job"))).scalar() == 3
    assert (await client.post("/v1/jobs/batch", json={"jobs": [good] * 1001})).status_code == 422
    assert (await client.post("/v1/jobs/batch", json={"jobs": []})).status_code == 422


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"task": "os.system", "arguments": {"command": "true"}}, "$.body.task"),
        ({"task": "send_welcome", "arguments": {}}, "$.body.arguments"),
        ({"task": "send_welcome", "arguments": {"user_id": "x"}}, "$.body.arguments.user_id"),
        ({"task": "send_welcome", "arguments": {"nobody": 1}}, "$.body.arguments"),
        ({"task": "send_welcome", "priority": 9}, "$.body.priority"),
        ({"task": "send_welcome", "queue": "a\nb"}, "$.body.queue"),
        ({"task": "send_welcome", "unique_for": 10}, "$.body"),
        ({"task": "send_welcome", "state": "running"}, "$.body.state"),
    ],
)
async def test_what_cannot_be_enqueued_is_refused_with_the_place(
    client: httpx2.AsyncClient, connection: AsyncConnection, body: dict[str, Any], path: str
) -> None:
    answer = await client.post("/v1/jobs", json=body)
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["path"].startswith(path)
    assert (await connection.execute(text("select count(*) from outbox.live_job"))).scalar() == 0


async def test_a_request_that_is_sent_again_enqueues_once(
    client: httpx2.AsyncClient, connection: AsyncConnection
) -> None:
    body = {"task": "send_welcome", "arguments": {"user_id": str(new_id())}}
    answers = [await client.post("/v1/jobs", json=body, headers={"Idempotency-Key": "k"}) for _ in range(3)]
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert [answer.headers.get("idempotency-replayed") for answer in answers] == [None, "true", "true"]
    other = await client.post("/v1/jobs", json=body | {"priority": 0}, headers={"Idempotency-Key": "k"})
    assert other.status_code == 422
    assert (await connection.execute(text("select count(*) from outbox.live_job"))).scalar() == 1


# Statistics and workers.


async def test_what_was_done_in_the_last_hour(client: httpx2.AsyncClient, connection: AsyncConnection) -> None:
    for outcome, count in (("succeeded", 7), ("failed", 2)):
        await connection.execute(
            text(
                "insert into outbox.statistic "
                "select seconds, date_bin(make_interval(secs => seconds), now(), 'epoch'), "
                "'mail', 'send', :outcome, n, array[0, 0, n], array[n] "
                "from (values (60), (600), (3600)) span (seconds), cast(:count as integer) n"
            ),
            {"outcome": outcome, "count": count},
        )
    for window, points in (("1h", 61), ("24h", 145), ("7d", 169)):
        seen = (await client.get("/v1/statistics", params={"window": window})).json()
        assert len(seen["points"]) in (points, points - 1)
        assert (seen["points"][-1]["succeeded"], seen["points"][-1]["failed"]) == (7, 2)
        assert sum(point["succeeded"] for point in seen["points"]) == 7
        [task] = seen["tasks"]
        assert (task["task"], task["succeeded"], task["failed"], task["run_p50"]) == ("send", 7, 2, 0.001)
    assert (await client.get("/v1/statistics", params={"task": "other"})).json()["tasks"] == []
    assert (await client.get("/v1/statistics", params={"window": "1y"})).status_code == 422


async def test_workers_and_what_they_do(
    client: httpx2.AsyncClient, engine: AsyncEngine, connection: AsyncConnection
) -> None:
    id = await plant(engine, "running")
    worker = (await read(engine, id)).worker_id
    await connection.execute(
        text(
            "insert into outbox.worker (id, host, pid, queues, tasks, lease) "
            "values (:id, 'h', 7, jsonb_build_object('q', 3), '{}', 30)"
        ),
        {"id": worker},
    )
    [seen] = (await client.get("/v1/workers")).json()["data"]
    assert (seen["id"], seen["host"], seen["queues"], seen["alive"], seen["running"]) == (
        str(worker),
        "h",
        {"q": 3},
        True,
        1,
    )
    [job] = (await client.get(f"/v1/workers/{worker}/jobs")).json()["data"]
    assert job["id"] == str(id)


async def test_the_doctor(client: httpx2.AsyncClient) -> None:
    seen = (await client.get("/v1/doctor")).json()
    assert seen["level"] == "problem"  # no worker is up
    assert {each["check"] for each in seen["findings"]} >= {"schema", "workers", "durability"}
    assert seen["settings"]
