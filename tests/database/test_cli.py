"""The command line, as a person or a script runs it."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from outbox.connection import Link
from outbox.presence import Presence
from tests.factories import new_id, plant, read

ROOT = Path(__file__).parents[2]


class Cli:
    """Runs ``outbox`` against the test's database."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def __call__(
        self, *arguments: object, status: int = 0, answer: str = "", cwd: Path = ROOT, **environment: str
    ) -> str:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "outbox",
            *map(str, arguments),
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "DATABASE_URL": self._url, **environment},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        printed, _ = await process.communicate(answer.encode())
        assert process.returncode == status, printed.decode()
        return printed.decode()

    async def json(self, *arguments: object, **options: Any) -> Any:
        return json.loads(await self(*arguments, "--json", **options))


@pytest.fixture
def cli(database_url: str) -> Cli:
    return Cli(database_url)


async def test_jobs_are_listed_and_shown(cli: Cli, engine: AsyncEngine) -> None:
    error = {"type": "ValueError", "message": "[red]no[/]", "traceback": "line 1", "attempt": 1, "at": "2026-01-01"}
    id = await plant(engine, "failed", task="send", payload={"to": "ä"}, errors=[error], tags=["red"])
    await plant(engine)
    listed = await cli("jobs", "ls", "--state", "failed", "--tag", "red")
    assert str(id) in listed
    assert "ValueError: [red]no[/]" in listed
    assert (await cli("jobs", "ls", "--state", "running")).strip() == "No jobs."
    assert [job["id"] for job in await cli.json("jobs", "ls", "-t", "send")] == [str(id)]
    assert [job["id"] for job in await cli.json("jobs", "ls", "--arguments", '{"to": "ä"}')] == [str(id)]
    shown = await cli("jobs", "show", id)
    assert '{"to": "ä"}' in shown
    assert "line 1" in shown
    assert (await cli.json("jobs", "show", id))["payload"] == {"to": "ä"}
    assert "no job" in await cli("jobs", "show", new_id(), status=1)
    assert "--arguments" in await cli("jobs", "ls", "--arguments", "[1]", status=2)
    assert "Invalid value" in await cli("jobs", "show", "x", status=2)


async def test_jobs_are_changed_one_and_many(cli: Cli, engine: AsyncEngine, db: asyncpg.Connection) -> None:
    failed = [await plant(engine, "failed") for _ in range(3)]
    assert "1 jobs enqueued again" in await cli("jobs", "retry", failed[0])
    assert "2 jobs would be" in await cli("jobs", "retry", "--state", "failed", "--dry-run")
    assert (await read(engine, failed[1])).state == "failed"
    refused = await cli("jobs", "retry", "--state", "failed", status=1, answer="n\n")
    assert "2 jobs will be" in refused
    assert (await read(engine, failed[1])).state == "failed"
    assert "2 jobs enqueued again" in await cli("jobs", "retry", "--state", "failed", answer="y\n")
    assert {(await read(engine, id)).state for id in failed} == {"pending"}
    assert (await cli.json("jobs", "cancel", "--all"))["changed"] == 3
    assert (await cli.json("jobs", "discard", "--state", "cancelled"))["changed"] == 3
    assert await db.fetchval("select count(*) from outbox.job") == 0
    assert "say which jobs" in await cli("jobs", "cancel", status=2)
    assert "0 jobs" in await cli("jobs", "cancel", new_id(), status=1)
    deeds = await db.fetch("select actor, action from outbox.audit order by id")
    assert [deed["action"] for deed in deeds] == ["retry", "retry", "cancel", "discard"]
    assert all(deed["actor"].endswith("(command line)") for deed in deeds)


async def test_many_are_changed_in_portions(cli: Cli, engine: AsyncEngine, db: asyncpg.Connection) -> None:
    await db.execute(
        "insert into outbox.finished_job (id, task, state) "
        "select outbox.uuid7(), 'noop', 'failed' from generate_series(1, 1201)"
    )
    assert "1,201 jobs enqueued again" in await cli("jobs", "retry", "--state", "failed", "--yes")
    assert await db.fetchval("select count(*) from outbox.live_job") == 1201
    transactions = await db.fetchval("select count(distinct xmin::text) from outbox.live_job")
    assert transactions == 3


async def test_why_a_job_does_not_run(cli: Cli, engine: AsyncEngine, link: Link) -> None:
    id = await plant(engine)
    assert "none is up at all" in await cli("jobs", "explain", id)
    await Presence(id=new_id(), queues={"default": 1}, tasks={"noop": 1}, lease=30.0).appear(link)
    found = await cli.json("jobs", "explain", id)
    assert (found["ready"], found["reasons"][0]["code"]) == (True, "in_line")


async def test_queues_schedules_and_workers(cli: Cli, engine: AsyncEngine, link: Link, db: asyncpg.Connection) -> None:
    await plant(engine, queue="mail")
    known = Presence(id=new_id(), queues={"mail": 4}, tasks={"noop": 1}, lease=30.0)
    await known.appear(link)
    assert "mail" in await cli("queues", "ls")
    assert "paused" in await cli("queues", "pause", "mail")
    [queue] = await cli.json("queues", "ls")
    assert (queue["name"], queue["ready"], queue["slots"], queue["paused_at"] is not None) == ("mail", 1, 4, True)
    await cli("queues", "resume", "mail")
    assert (await cli.json("queues", "ls"))[0]["paused_at"] is None
    assert "printable" in await cli("queues", "pause", "a\nb", status=2)
    assert "No schedules" in await cli("schedules", "ls")
    assert "no schedule" in await cli("schedules", "pause", "x", status=1)
    assert str(known.id) in await cli("workers")
    assert (await cli.json("workers"))[0]["queues"] == {"mail": 4}
    assert await db.fetchval("select array_agg(action order by id) from outbox.audit") == ["pause", "resume"]


async def test_statistics(cli: Cli, db: asyncpg.Connection) -> None:
    await db.execute(
        "insert into outbox.statistic "
        "values (60, date_trunc('minute', now()), 'mail', 'send', 'succeeded', 7, '{7}', '{0,7}')"
    )
    shown = await cli("stats")
    assert "7 jobs succeeded in the last hour" in shown
    assert "send" in shown
    assert "█" in shown
    assert (await cli.json("stats"))["minutes"][0]["count"] == 7


async def test_the_doctors_exit_status_says_whether_there_are_problems(cli: Cli) -> None:
    said = await cli("doctor", status=1)
    assert "No worker is up." in said
    assert "→ Start one" in said
    found = await cli.json("doctor", status=1)
    assert found["level"] == "problem"


async def test_keys_are_made_listed_and_revoked(cli: Cli, db: asyncpg.Connection) -> None:
    made = await cli.json("keys", "create", "ci", "--scope", "enqueue", "-s", "read", "--tenant", "acme", "--days", "1")
    assert made["key"].startswith(made["prefix"])
    listed = await cli("keys", "ls")
    assert made["prefix"] in listed
    assert made["key"] not in listed
    assert made["key"] not in str(await db.fetch("select * from outbox.audit"))
    assert "is revoked" in await cli("keys", "revoke", made["prefix"])
    assert (await cli.json("keys", "ls"))[0]["revoked_at"] is not None
    assert "no key" in await cli("keys", "revoke", "obx_nobody", status=1)
    assert "Invalid value" in await cli("keys", "create", "ci", "--scope", "root", status=2)


async def test_every_option_can_be_said_in_the_environment(cli: Cli, engine: AsyncEngine) -> None:
    ids = [await plant(engine) for _ in range(3)]
    listed = json.loads(await cli("jobs", "ls", OUTBOX_JOBS_LS_LIMIT="1", OUTBOX_JOBS_LS_JSON="1"))
    assert [job["id"] for job in listed] == [str(ids[-1])]


async def test_a_database_that_cannot_be_asked_is_a_message_and_no_traceback(cli: Cli, tmp_path: Path) -> None:
    for url in ("postgresql://x:s3cret@127.0.0.1:1/x", "postgresql://x:s3cret@nowhere.invalid/x"):
        said = await cli("queues", "ls", status=78, DATABASE_URL=url)
        assert "--database-url" in said
        assert "Traceback" not in said
        assert "s3cret" not in said


async def test_the_project_says_which_outbox(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text("from outbox import Outbox\nqueue = Outbox()\n@queue.task()\ndef f(): ...\n")
    assert "say which Outbox" in await cli("check", status=78, cwd=tmp_path)
    (tmp_path / "pyproject.toml").write_text('[tool.outbox]\napp = "shop:queue"\n')
    assert "0 jobs checked" in await cli("check", cwd=tmp_path)
    (tmp_path / "pyproject.toml").write_text("[tool.outbox]\napp = 7\n")
    assert "must be a string" in await cli("check", status=78, cwd=tmp_path)
    (tmp_path / "pyproject.toml").write_text("[tool")
    assert "pyproject.toml" in await cli("check", status=78, cwd=tmp_path)


async def test_the_api_as_openapi(cli: Cli) -> None:
    said = json.loads(await cli("openapi", "api.handlers:outbox"))
    assert said["paths"]["/v1/jobs/{job_id}"]["get"]["operationId"] == "jobs_get"
