"""What a check says of the jobs that wait, before a deploy and at the command line."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from pydantic import BaseModel, SecretStr, field_validator
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from outbox import Outbox, check
from outbox.check import Report
from outbox.errors import DeclarationError
from outbox.secret import Keyring
from tests.factories import plant, plant_many

Sessions = async_sessionmaker[AsyncSession]
CANARY = "canary-2b7e151628aed2a6"


class Line(BaseModel):
    sku: str

    @field_validator("sku")
    @classmethod
    def known(cls, sku: str) -> str:
        if sku == CANARY:
            raise ValueError(f"no article {sku}")
        return sku


def coming(ring: Keyring | None = None) -> Outbox:
    """The code that is about to be deployed."""
    outbox = Outbox(secrets=ring)

    @outbox.task()
    async def noop(n: int = 0) -> None: ...

    @outbox.task()
    async def order(lines: list[Line]) -> None: ...

    @outbox.task(version=2)
    async def send(to: str) -> None: ...

    @send.upcast(1)
    def _(arguments: dict[str, Any]) -> dict[str, Any]:
        return {"to": arguments["email"]}

    return outbox


def said(report: Report) -> list[tuple[str, bool, str, int]]:
    return [(each.task, each.fails, each.reason, each.count) for each in report.problems]


async def test_all_is_well(engine: AsyncEngine, database_url: str) -> None:
    await plant_many(engine, 250)
    await plant(engine, task="send", payload={"email": "ada"})
    await plant(engine, task="send", payload={"to": "ada"}, version=2)
    await plant(engine, "failed", task="gone")
    told: list[int] = []
    report = await check.check(coming(), database_url, progress=told.append)
    assert (report.checked, said(report)) == (252, [])
    assert told == [100, 200, 252], "finished jobs are no matter"


async def test_each_problem_is_named_with_its_jobs_and_without_values(engine: AsyncEngine, database_url: str) -> None:
    bad = [await plant(engine, payload={"n": CANARY}) for _ in range(5)]
    await plant(engine, "running", payload={"n": None})
    await plant(engine, "scheduled", task="order", payload={"lines": [{"sku": "a"}, {"sku": CANARY}]})
    await plant(engine, "retrying", task="order", payload={"lines": [{"sku": CANARY}]})
    await plant(engine, task="order", payload={"lines": [{}]})
    await plant(engine, task="send", payload={"recipient": CANARY})
    await plant(engine, task="send", payload={"to": "ada"}, version=3)
    await plant(engine, task="gone", payload={"n": CANARY})
    report = await check.check(coming(), database_url)
    assert said(report) == [
        ("noop", True, "$.n: int parsing", 5),
        ("noop", True, "$.n: int type", 1),
        ("order", True, "$.lines[*].sku: value error", 2),
        ("order", True, "$.lines[*].sku: missing", 1),
        ("send", True, "$: upcast(1) raised KeyError", 1),
        ("gone", False, "unknown task", 1),
        ("send", False, "has version 3, this code knows 2", 1),
    ]
    assert report.checked == 12
    assert report.problems[0].examples == sorted(bad)[:3]
    assert CANARY not in str(report)


async def test_a_key_that_is_about_to_be_taken_away_is_named(
    engine: AsyncEngine, sessions: Sessions, database_url: str
) -> None:
    old, new = os.urandom(32), os.urandom(32)

    def release(ring: Keyring) -> Outbox:
        outbox = Outbox(secrets=ring)

        @outbox.task()
        async def use(key: SecretStr) -> None: ...

        return outbox

    before = release(Keyring({"old": old}, current="old"))
    during = release(Keyring({"old": old, "new": new}, current="new"))
    after = release(Keyring({"new": new}, current="new"))
    async with sessions.begin() as session:
        for outbox in (before, during):
            outbox["use"].enqueue(session, CANARY)
    assert said(await check.check(during, database_url)) == []
    report = await check.check(after, database_url)
    assert said(report) == [("use", True, "$.key: is encrypted with the key 'old', which is not on the keyring", 1)]


async def test_nothing_is_written_or_locked(engine: AsyncEngine, db: asyncpg.Connection, database_url: str) -> None:
    id = await plant(engine)
    async with db.transaction():
        await db.execute("lock table outbox.live_job in exclusive mode")
        before = await db.fetchrow("select xmin, * from outbox.live_job")
        assert (await check.check(coming(), database_url)).checked == 1
        assert await db.fetchrow("select xmin, * from outbox.live_job where id = $1", id) == before


async def test_it_could_not_write_if_it_wanted_to(
    db: asyncpg.Connection, engine: AsyncEngine, database_url: str
) -> None:
    await plant(engine)
    await db.execute(
        """
        create table note (at timestamptz default now());
        create function note() returns boolean language sql as 'insert into note default values returning true';
        alter table outbox.live_job rename to real_live_job;
        create view outbox.live_job as select * from outbox.real_live_job where note()
        """
    )
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        await check.check(coming(), database_url)


async def test_a_report_stays_small(engine: AsyncEngine, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "MOST", 3)
    for n in range(6):
        await plant(engine, task=f"gone_{n}")
    report = await check.check(coming(), database_url)
    assert [each[3] for each in said(report)] == [3, 1, 1, 1]
    assert said(report)[0] == ("(others)", True, "for other reasons", 3)


async def test_a_missing_upcaster_is_found_without_any_job(database_url: str) -> None:
    outbox = Outbox()

    @outbox.task(version=2)
    async def send(to: str) -> None: ...

    with pytest.raises(DeclarationError, match=r"no upcast\(1\)"):
        await check.check(outbox, database_url)


# At the command line.

CODE = """
from outbox import Outbox
outbox = Outbox()

@outbox.task()
async def noop(n: int = 0) -> None: ...
"""


def run(folder: Path, url: str) -> "subprocess.CompletedProcess[str]":
    (folder / "coming.py").write_text(CODE)
    command = [sys.executable, "-m", "outbox", "check", "coming:outbox", "--database-url", url]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)


async def test_the_exit_status_tells_a_pipeline(engine: AsyncEngine, database_url: str, tmp_path: Path) -> None:
    await plant_many(engine, 3)
    well = run(tmp_path, database_url)
    assert (well.returncode, well.stdout, well.stderr) == (0, "3 jobs checked, 0 of them would not run\n", "")
    id = await plant(engine, payload={"n": CANARY})
    bad = run(tmp_path, database_url)
    assert bad.returncode == 1
    head, line, last = bad.stdout.splitlines()
    assert head.split() == ["task", "jobs", "would", "because", "as", "for"]
    assert line.split() == ["noop", "1", "fail", "$.n:", "int", "parsing", str(id)]
    assert last == "4 jobs checked, 1 of them would not run"
    assert CANARY not in bad.stdout + bad.stderr


@pytest.mark.parametrize(
    ("url", "text"),
    [
        (f"postgresql://ada:{CANARY}@127.0.0.1:1/none", "the database cannot be reached"),
        (f"postgresql://ada:{CANARY}@h:{CANARY}/none", "the database URL cannot be read"),
    ],
)
def test_a_database_that_cannot_be_asked_is_no_answer(url: str, text: str, tmp_path: Path) -> None:
    done = run(tmp_path, url)
    assert done.returncode == 78
    assert text in done.stderr
    assert CANARY not in done.stdout + done.stderr
