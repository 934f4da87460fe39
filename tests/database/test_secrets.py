"""A canary is sent through a job's whole life, and must be seen by its handler and by nobody else."""

import json
import logging
import os
from collections.abc import Callable
from typing import Annotated, Any
from uuid import UUID

import asyncpg
import httpx2
import pytest
from fastapi import FastAPI
from pydantic import AfterValidator, BaseModel, SecretBytes, SecretStr
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from outbox import INJECTED, JobContext, Outbox, Retry, State, control, migrate
from outbox.connection import Link
from outbox.errors import DeclarationError, JobNotFound, PayloadInvalid
from outbox.fastapi import outbox_router, problem_handlers
from outbox.schedule import Schedule
from outbox.secret import MASK, Keyring
from outbox.worker import Worker
from tests import factories, isolated
from tests.database.workers import drained, settings, working
from tests.factories import read

Sessions = async_sessionmaker[AsyncSession]

CANARY = "canary-2b7e151628aed2a6abf7158809cf4f3c"
OLD, NEW = os.urandom(32), os.urandom(32)
RING = Keyring({"2026-11": OLD}, current="2026-11")
ONCE = Retry(max_attempts=1)


class Login(BaseModel):
    user: str
    password: SecretStr


class Checked(BaseModel):
    n: int


class Receipt(BaseModel):
    to: str
    token: SecretStr


def refuse(value: SecretStr) -> SecretStr:
    raise ValueError(f"{value.get_secret_value()} is too simple")


def declare(ring: Keyring = RING, **options: Any) -> tuple[Outbox, list[Any]]:
    """Tasks that use secrets in all ways, and what their handlers were given."""
    outbox, seen = Outbox(secrets=ring), []

    @outbox.task(**{"retry": ONCE, **options})
    async def use(login: Login, keys: list[SecretBytes], by_name: dict[str, SecretStr]) -> Receipt:
        seen.append((login, keys, by_name))
        return Receipt(to="ada", token=login.password)

    @outbox.task(retry=ONCE)
    async def fail(key: SecretStr) -> None:
        try:
            Checked.model_validate({"n": {"key": key.get_secret_value()}})
        except ValueError as exc:
            raise RuntimeError(f"could not use {key.get_secret_value()!r}") from exc

    @outbox.task(retry=ONCE)
    def fail_in_thread(key: SecretStr) -> None:
        raise KeyError(key.get_secret_value())

    @outbox.task(retry=ONCE)
    async def give(key: SecretStr, *, ctx: JobContext = INJECTED) -> list[SecretStr]:
        ctx.progress(1, 2, f"using {key}")
        return [key]

    return outbox, seen


def given() -> tuple[Login, list[SecretBytes], dict[str, SecretStr]]:
    return Login(user="ada", password=SecretStr(CANARY)), [SecretBytes(CANARY.encode())], {"a": SecretStr(CANARY)}


async def everything(db: asyncpg.Connection) -> str:
    """Every row of every table and view of ours, as text."""
    relations = await db.fetch(
        "select oid::regclass::text as name from pg_class "
        "where relnamespace = 'outbox'::regnamespace and relkind in ('r', 'p', 'v')"
    )
    assert {"outbox.live_job", "outbox.finished_job", "outbox.job"} <= {row["name"] for row in relations}
    texts = [
        await db.fetchval(f"select string_agg(each::text, ' ') from {row['name']} each")  # noqa: S608
        for row in relations
    ]
    return " ".join(text for text in texts if text)


async def test_a_canary_is_seen_by_its_handler_and_by_nobody_else(
    engine: AsyncEngine,
    sessions: Sessions,
    db: asyncpg.Connection,
    database_url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    loud = create_async_engine(database_url, echo="debug")
    outbox, seen = declare()
    async with async_sessionmaker(loud).begin() as session:
        used = outbox["use"].enqueue(session, *given())
        others = [outbox[name].enqueue(session, CANARY) for name in ("fail", "fail_in_thread", "give")]
    await loud.dispose()
    assert CANARY not in await everything(db)
    async with working(outbox, database_url):
        await drained(engine)
    assert seen == [given()]
    states = [(await read(engine, job.id)).state for job in (used, *others)]
    assert states == [State.SUCCEEDED, State.FAILED, State.FAILED, State.SUCCEEDED]
    rows = await everything(db)
    assert "RuntimeError" in rows, "else there was nothing to look at"
    assert "could not use" in rows
    job = await read(engine, used.id)
    assert job.payload["login"] == {"user": "ada", "password": MASK}
    assert job.payload["keys"] == [MASK]
    assert job.result == {"to": "ada", "token": MASK}
    answers = await asked(sessions, [each.id for each in (used, *others)])
    assert json.loads(answers[0])["result"] == {"to": "ada", "token": MASK}
    for text in (rows, caplog.text, repr([used, *others, job, RING]), *answers):
        assert CANARY not in text
        assert CANARY[:12] not in text
        assert CANARY[-12:] not in text


async def asked(sessions: Sessions, ids: list[UUID]) -> list[str]:
    """What the status API says of the jobs, one by one, and then as a page."""
    app = FastAPI()
    app.include_router(outbox_router(Outbox(), sessions, prefix=""))
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        answers = [await client.get(f"/jobs/{id}") for id in ids] + [await client.get("/jobs")]
    assert {answer.status_code for answer in answers} == {200}
    return [answer.text for answer in answers]


async def test_a_request_that_is_refused_does_not_repeat_a_secret(
    sessions: Sessions, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    outbox, app = Outbox(secrets=RING), FastAPI()
    problem_handlers(app)

    @outbox.task()
    async def send(key: Annotated[SecretStr, AfterValidator(refuse)]) -> None: ...

    @app.post("/")
    async def post() -> None:
        async with sessions.begin() as session:
            send.enqueue(session, CANARY)  # type: ignore[arg-type]  # as text

    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://jobs") as client:
        answer = await client.post("/")
    assert answer.status_code == 422
    assert answer.json()["errors"] == [{"path": "$.key", "reason": "value error"}]
    assert CANARY not in answer.text + caplog.text


# At faults.


async def test_a_missing_key_costs_attempts_and_no_data(
    engine: AsyncEngine, sessions: Sessions, database_url: str
) -> None:
    outbox, seen = declare()
    late, _ = declare(Keyring({"2027-01": NEW}, current="2027-01"))
    async with sessions.begin() as session:
        job = outbox["use"].enqueue(session, *given())
    async with working(late, database_url):
        await drained(engine)
    failed = await read(engine, job.id)
    assert failed.state is State.FAILED
    assert failed.errors[-1]["message"] == (
        "arguments of task 'use': $.keys[0]: is encrypted with the key '2026-11', which is not on the keyring"
    )
    async with sessions.begin() as session:
        await control.requeue(session, job.id)
    both, seen = declare(Keyring({"2026-11": OLD, "2027-01": NEW}, current="2027-01"))
    async with working(both, database_url):
        await drained(engine)
    assert seen == [given()]
    assert (await read(engine, job.id)).state is State.SUCCEEDED


MOVES = {
    "another job's": "(select payload from outbox.live_job where id <> $1)",
    "changed": "jsonb_set(payload, '{key,$secret,data}', '\"AAAA\"')",
    "another key": "jsonb_set(payload, '{key,$secret,key}', '\"2027-01\"')",
}


@pytest.mark.parametrize("move", MOVES)
async def test_a_row_that_was_changed_by_hand_does_not_open(
    engine: AsyncEngine, sessions: Sessions, db: asyncpg.Connection, database_url: str, move: str
) -> None:
    outbox, _ = declare(Keyring({"2026-11": OLD, "2027-01": NEW}, current="2026-11"))
    async with sessions.begin() as session:
        spoilt, good = (outbox["give"].enqueue(session, text) for text in ("one", CANARY))
    await db.execute(f"update outbox.live_job set payload = {MOVES[move]} where id = $1", spoilt.id)  # noqa: S608
    async with working(outbox, database_url):
        await drained(engine)
    job = await read(engine, spoilt.id)
    assert job.state is State.FAILED
    assert "$.key: cannot be decrypted with the key" in job.errors[-1]["message"]
    assert (await read(engine, good.id)).state is State.SUCCEEDED


@pytest.mark.parametrize("how", ["in two transactions", "in one flush"])
async def test_the_secrets_of_a_job_that_was_replaced_open(
    engine: AsyncEngine, sessions: Sessions, database_url: str, how: str
) -> None:
    outbox, seen = declare()
    use = outbox["use"].options(key="k", on_conflict="replace")
    async with sessions() as session:
        first = use.enqueue(session, Login(user="ada", password=SecretStr("old")), [], {})
        if how == "in two transactions":
            await session.commit()
        second = use.enqueue(session, *given())
        await session.commit()
    assert second.id == first.id
    async with working(outbox, database_url):
        await drained(engine)
    assert seen == [given()]


async def test_thousands_are_sealed_too(engine: AsyncEngine, sessions: Sessions, db: asyncpg.Connection) -> None:
    outbox, _ = declare()
    async with sessions.begin() as session:
        await outbox.enqueue_many(session, [outbox["give"].job(CANARY) for _ in range(10)])
    assert await factories.count(engine) == 10
    assert CANARY not in await everything(db)


async def test_what_sql_wrote_in_clear_is_taken_as_it_is(
    engine: AsyncEngine, db: asyncpg.Connection, database_url: str
) -> None:
    outbox, _ = declare()
    id = await db.fetchval("select outbox.enqueue('give', jsonb_build_object('key', $1::text))", CANARY)
    async with working(outbox, database_url):
        await drained(engine)
    async with engine.connect() as connection:
        assert await outbox["give"].result_of(connection, id) == [SecretStr(CANARY)]


async def test_a_child_process_opens_and_seals_as_well(
    engine: AsyncEngine,
    sessions: Sessions,
    db: asyncpg.Connection,
    database_url: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    async with sessions.begin() as session:
        used = isolated.uses_secret.enqueue(session, SecretStr(CANARY))
        failed = isolated.fails_with_secret.enqueue(session, SecretStr(CANARY))
    async with working(isolated.sealed, database_url):
        await drained(engine)
    assert (await read(engine, failed.id)).errors[-1]["message"] == f"'{MASK}'"
    said = capfd.readouterr()
    assert CANARY not in await everything(db) + said.out + said.err
    async with engine.connect() as connection:
        assert await isolated.uses_secret.result_of(connection, used.id) == SecretStr(CANARY[::-1])


def test_a_schedule_cannot_have_secrets() -> None:
    outbox, _ = declare()
    with pytest.raises(ValueError, match="each tick gets a job of its own: not with secrets"):
        Schedule(name="s", job=outbox["give"].job(CANARY), cron="* * * * *")


# Results.


async def test_a_result_opens_for_those_who_have_the_keys(
    engine: AsyncEngine, sessions: Sessions, database_url: str
) -> None:
    outbox, _ = declare()
    async with sessions.begin() as session:
        job = outbox["use"].enqueue(session, *given())
    async with engine.connect() as connection:
        assert await outbox["use"].result_of(connection, job.id) is None, "not yet"
    async with working(outbox, database_url):
        await drained(engine)
    later, _ = declare(Keyring({"2027-01": NEW}, current="2027-01"))
    async with engine.connect() as connection:
        receipt = await outbox["use"].result_of(connection, job.id)
        assert receipt == Receipt(to="ada", token=SecretStr(CANARY))
        with pytest.raises(PayloadInvalid, match=r"\$\.token: is encrypted with the key '2026-11'"):
            await later["use"].result_of(connection, job.id)
        with pytest.raises(JobNotFound):
            await outbox["give"].result_of(connection, job.id)


async def test_a_result_that_is_settled_by_its_handler_is_sealed_too(
    engine: AsyncEngine, sessions: Sessions, db: asyncpg.Connection, database_url: str
) -> None:
    outbox = Outbox(secrets=RING, sessions=sessions)

    @outbox.task()
    async def settle(key: SecretStr, *, session: AsyncSession = INJECTED) -> SecretStr:
        return key

    async with sessions.begin() as session:
        job = settle.enqueue(session, SecretStr(CANARY))
    async with working(outbox, database_url):
        await drained(engine)
    assert CANARY not in await everything(db)
    async with engine.connect() as connection:
        assert await settle.result_of(connection, job.id) == SecretStr(CANARY)


# The address of the database.


@pytest.mark.parametrize(
    "address", [f"postgresql://ada:{CANARY}@127.0.0.1:1/none", f"postgresql+asyncpg://ada:{CANARY}@127.0.0.1:1/none"]
)
async def test_an_outage_does_not_show_the_password(address: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    worker = Worker(declare()[0], address, settings())
    link = Link(address, settings(), "test", timeout=5)
    with pytest.raises(ConnectionRefusedError) as caught:
        await link.fetch("select 1")
    await link.pause(caught.value)
    assert "database_lost" in caplog.text
    assert CANARY not in caplog.text + str(caught.value) + repr(worker) + repr(link)


@pytest.mark.parametrize("call", [migrate.migrate, lambda url: Worker(declare()[0], url).run()])
async def test_an_address_that_cannot_be_read_is_not_shown(call: Callable[[str], Any]) -> None:
    with pytest.raises(DeclarationError, match="percent-encode") as caught:
        await call(f"postgresql://ada:p:{CANARY}@h:{CANARY}/none")
    assert CANARY not in str(caught.value)
    assert caught.value.__suppress_context__
