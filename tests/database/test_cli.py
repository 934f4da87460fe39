"""The command line, as a person or a script runs it."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from outbox.cli import command
from outbox.connection import Link
from outbox.presence import Presence
from tests import forks
from tests.commands import ARGUMENTS, invoke, leaves
from tests.factories import new_id, plant, plant_many, read
from tests.waiting import eventually

ROOT = Path(__file__).parents[2]


class Cli:
    """Runs ``outbox`` against the test's database."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def __call__(
        self, *arguments: object, status: int = 0, answer: str = "", cwd: Path = ROOT, **environment: str
    ) -> str:
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "200",
            "DATABASE_URL": self._url,
            **environment,
        }
        code, printed = await forks.outbox([*map(str, arguments)], environment, cwd=cwd, answer=answer)
        assert code == status, printed
        return printed

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


async def test_what_a_job_says_does_nothing_to_a_terminal(cli: Cli, engine: AsyncEngine) -> None:
    evil = "\x1b[2J\x1b]0;gone\x07\u202e\x9b31m"
    error = {"type": "Error", "message": evil, "traceback": f"line 1\n{evil}", "attempt": 1, "at": "2026-01-01"}
    id = await plant(
        engine, "failed", payload={"to": evil}, result={"ä": evil}, errors=[error], progress=None, tags=[evil]
    )
    for words in (("show", id), ("ls",), ("show", id, "--json"), ("explain", id)):
        printed = await cli("jobs", *words)
        assert all(each.isprintable() or each == "\n" for each in printed), ascii(printed)
    assert "line 1\n" in await cli("jobs", "show", id)
    assert (await cli.json("jobs", "show", id))["payload"] == {"to": evil}


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


REFUSED = {"jobs show", "jobs explain", "schedules pause", "schedules resume", "schedules fire", "keys revoke"}
"""Commands that there is nothing to do for in an empty database."""

LEAVES = sorted(path for path, _ in leaves(command()) if path not in ("worker", "dev"))


@pytest.mark.parametrize("path", LEAVES)
async def test_json_is_json_where_there_is_nothing(
    path: str, database_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    # In a thread, for commands bring an event loop of their own.
    status, out, err = await asyncio.to_thread(invoke, capsys, *path.split(), *ARGUMENTS.get(path, ()), "--json")
    if path in REFUSED:
        assert (status, out, err.count("\n")) == (1, "", 1)
    else:
        assert status in (0, 1)
        assert isinstance(json.loads(out), list | dict)
        assert err == ""


HOSTILE = "[red]\u202e\x1b[2J" + "x" * 150

SHOWN = r"[red]\u202e\x1b[2Jxxx"


@pytest.mark.parametrize("columns", ["60", "200"])
async def test_whatever_is_in_a_row_is_shown_to_the_letter(
    cli: Cli, engine: AsyncEngine, db: asyncpg.Connection, link: Link, columns: str
) -> None:
    error = {"type": "E", "message": HOSTILE, "traceback": f"  File {HOSTILE}", "attempt": 1, "at": "2026-01-01"}
    failed = await plant(engine, "failed", task=HOSTILE, queue=HOSTILE, payload={HOSTILE: HOSTILE}, errors=[error])
    waiting = await plant(engine, task=HOSTILE, queue=HOSTILE, group_key=HOSTILE, tags=[HOSTILE], tenant=HOSTILE)
    await db.execute(
        "insert into outbox.statistic values (60, date_trunc('minute', now()), $1, $1, 'succeeded', 7, '{7}', '{7}')",
        HOSTILE,
    )
    await Presence(id=new_id(), queues={HOSTILE: 1}, tasks={"noop": 1}, lease=30.0).appear(link)
    doings: list[tuple[object, ...]] = [
        ("jobs", "ls"), ("jobs", "show", failed), ("jobs", "show", waiting), ("jobs", "explain", waiting),
        ("queues", "ls"), ("workers",), ("stats",),
    ]  # fmt: skip
    for doing in doings:
        said = await cli(*doing, COLUMNS=columns)
        assert "[red]" in said, doing
        assert not {each for each in said if not each.isprintable()} - {"\n"}, doing
    assert SHOWN in await cli("doctor", status=1, COLUMNS=columns)
    assert SHOWN in await cli("check", "api.handlers:outbox", status=1, COLUMNS=columns)
    # For programs nothing is changed.
    assert {job["task"] for job in await cli.json("jobs", "ls")} == {HOSTILE}


async def test_colours_are_for_terminals_that_want_them(cli: Cli, engine: AsyncEngine) -> None:
    id = await plant(engine, "failed", errors=[{"type": "E", "message": "m", "attempt": 1, "at": "2026-01-01"}])
    assert "\x1b[" in await cli("jobs", "show", id, FORCE_COLOR="1")
    assert "\x1b[3" not in await cli("jobs", "show", id, FORCE_COLOR="1", NO_COLOR="1")
    assert "\x1b" not in await cli("jobs", "show", id)


async def test_nothing_is_folded_where_no_terminal_is(cli: Cli, engine: AsyncEngine) -> None:
    id = await plant(engine, task="t" * 120, queue="q" * 100)
    [_, row] = (await cli("jobs", "ls", COLUMNS="")).splitlines()
    assert row.split()[:3] == [str(id), "t" * 120, "q" * 100]


async def test_a_reader_that_leaves_is_no_traceback(cli: Cli, db: asyncpg.Connection, database_url: str) -> None:
    await db.execute(
        "insert into outbox.finished_job (id, task, state) "
        "select outbox.uuid7(), 'noop', 'failed' from generate_series(1, 2000)"
    )
    for arguments in (["jobs", "ls", "--limit", "2000"], ["jobs", "ls", "--limit", "2000", "--json"]):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "outbox", *arguments),
            cwd=ROOT,
            env={**os.environ, "DATABASE_URL": database_url},
            stdout=(pipe := os.pipe())[1],
            stderr=asyncio.subprocess.PIPE,
        )
        os.close(pipe[1])
        os.close(pipe[0])
        _, complaints = await process.communicate()
        assert (process.returncode, complaints.decode()) == (1, "")


async def test_without_a_schema_the_fix_is_said(cli: Cli, db: asyncpg.Connection) -> None:
    await db.execute("drop schema outbox cascade")
    for doing in (("jobs", "ls"), ("stats", "--watch"), ("check", "api.handlers:outbox"), ("keys", "ls")):
        said = await cli(*doing, status=78)
        assert "run: outbox migrate" in said
        assert said.count("\n") == 1
    assert "outbox migrate" in await cli("worker", "api.handlers:outbox", status=78)
    found = await cli.json("doctor", status=1)
    assert (found["findings"][0]["check"], found["findings"][0]["level"]) == ("schema", "problem")
    assert not [each for each in found["findings"] if "could not be checked" in each["text"]]
    assert (await cli.json("migrate"))["before"] == 0
    assert (await cli.json("migrate"))["before"] > 0
    assert json.loads(await cli("jobs", "ls", "--json")) == []


async def test_an_address_with_what_only_libpq_knows(cli: Cli, database_url: str) -> None:
    url = make_url(database_url).update_query_dict({"sslmode": "prefer"})
    assert "No jobs." in await cli("jobs", "ls", DATABASE_URL=url.render_as_string(hide_password=False))


async def test_code_that_cannot_be_imported_is_a_line_with_its_place(cli: Cli, tmp_path: Path) -> None:
    for code, said in {
        "def (": "shop.py:1: SyntaxError",
        "import json\njson.loads('x')": "shop.py:2: JSONDecodeError",
        "import nowhere": "shop.py:1: ModuleNotFoundError: No module named 'nowhere'",
        "raise SystemError('a\\x1b[2J')": r"shop.py:1: SystemError: a\x1b[2J",
    }.items():
        (tmp_path / "shop.py").write_text(code)
        for doing in ("check", "worker"):
            printed = await cli(doing, "shop:queue", status=78, cwd=tmp_path, PYTHONDONTWRITEBYTECODE="1")
            assert said in printed
            assert printed.count("\n") == 1


async def test_a_check_for_programs(cli: Cli, engine: AsyncEngine) -> None:
    id = await plant(engine, task="unknown")
    found = await cli.json("check", "api.handlers:outbox", status=1)
    assert (found["checked"], found["problems"][0]["task"], found["problems"][0]["examples"]) == (
        1,
        "unknown",
        [str(id)],
    )


async def test_a_worker_that_logs_json(cli: Cli, database_url: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "outbox", "worker", "api.handlers:outbox", "--json"),
        cwd=ROOT,
        env={**os.environ, "DATABASE_URL": database_url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    first = json.loads(await process.stdout.readline())
    assert (first["event"], first["level"], first["fields"]["queues"]) == ("worker_started", "info", {"default": 10})
    process.terminate()
    printed, complaints = await process.communicate()
    events = [json.loads(line)["event"] for line in printed.splitlines()]
    assert (events[-1], complaints, process.returncode) == ("worker_stopped", b"", 0)


async def test_ctrl_c_says_how_many_were_changed(cli: Cli, db: asyncpg.Connection, database_url: str) -> None:
    await db.execute(
        "insert into outbox.finished_job (id, task, state) "
        "select outbox.uuid7(), 'noop', 'failed' from generate_series(1, 20000)"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "outbox", "jobs", "retry", "--all", "--yes"),
        cwd=ROOT,
        env={**os.environ, "DATABASE_URL": database_url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )

    async def some() -> bool:
        return bool(await db.fetchval("select count(*) from outbox.live_job"))

    await eventually(some)
    process.send_signal(signal.SIGINT)
    printed, complaints = await process.communicate()
    changed = await db.fetchval("select count(*) from outbox.live_job")
    assert (process.returncode, printed) == (130, b"")
    assert 0 < changed < 20_000
    assert f"interrupted: {changed:,} jobs enqueued again by then" in complaints.decode()


async def test_many_that_stay_where_they_are_are_changed_once(cli: Cli, engine: AsyncEngine) -> None:
    await plant_many(engine, 1100, state="running")
    assert "1,100 jobs cancelled or asked to stop" in await cli("jobs", "cancel", "--all", "--yes")
    assert "no job" not in await cli("jobs", "run-now", "--state", "pending", "--yes", status=1)
