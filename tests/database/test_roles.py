"""Each role of docs/roles.md can do its work, and nothing else."""

import logging
import re
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from outbox import (
    INJECTED,
    JobContext,
    Limit,
    Outbox,
    Retry,
    State,
    WorkerSettings,
    address,
    connection,
    inbox,
    keys,
    maintenance,
    schema,
)
from outbox.batch import Batch, BatchSummary
from outbox.connection import Link
from outbox.fastapi import api_keys, outbox_router, problem_handlers
from outbox.keys import Scope
from tests.database.test_access import TARGETS, call, routes
from tests.database.workers import drained, in_state, working
from tests.factories import execute_on, new_id, plant, read

ROOT = Path(__file__).parents[2]
GRANTS = (ROOT / "docs" / "examples" / "roles.sql").read_text()

Sessions = async_sessionmaker[AsyncSession]


@pytest.fixture
async def roles(db: asyncpg.Connection) -> AsyncIterator[Mapping[str, str]]:
    """The names of the roles, made by the page's own statements. A server has them for all databases."""
    names = {role: f"{role}_{uuid4().hex[:12]}" for role in ("enqueuer", "worker", "api")}
    await db.execute(re.sub(r"\boutbox_(enqueuer|worker|api)\b", lambda found: names[found[1]], GRANTS))
    yield names
    for name in names.values():
        await db.execute(f"drop owned by {name}")
    for name in names.values():
        await db.execute(f"drop role {name}")


def url_of(database_url: str, role: str) -> str:
    """The same database, with the rights of a role from the first statement on."""
    return make_url(database_url).update_query_dict({"role": role}).render_as_string(hide_password=False)


@pytest.fixture
async def engines(database_url: str, roles: Mapping[str, str]) -> AsyncIterator[dict[str, AsyncEngine]]:
    """An engine for each role."""
    engines = {
        role: create_async_engine(database_url, connect_args={"server_settings": {"role": name}})
        for role, name in roles.items()
    }
    yield engines
    for engine in engines.values():
        await engine.dispose()


def sessions_of(engine: AsyncEngine) -> Sessions:
    return async_sessionmaker(engine, expire_on_commit=False)


@pytest.fixture
async def raw(database_url: str, roles: Mapping[str, str]) -> AsyncIterator[dict[str, asyncpg.Connection]]:
    """A plain connection of each role."""
    opened = {role: await asyncpg.connect(connection.dsn(url_of(database_url, roles[role]))) for role in roles}
    yield opened
    for each in opened.values():
        await each.close()


async def is_denied(db: asyncpg.Connection, statement: str) -> bool:
    try:
        await db.execute(statement)
    except asyncpg.InsufficientPrivilegeError:  # SQLSTATE 42501
        return True
    return False


outbox = Outbox()


@outbox.task()
async def noop(n: int = 0) -> int:
    return n


# What each may not.


@pytest.mark.parametrize("role", ["enqueuer", "worker", "api"])
async def test_nobody_makes_or_changes_what_the_schema_is_made_of(
    raw: Mapping[str, asyncpg.Connection], role: str
) -> None:
    for statement in (
        "create table outbox.mine (id integer)",
        "create function outbox.mine() returns integer language sql as 'select 1'",
        "create or replace function outbox.uuid7() returns uuid language sql as 'select null::uuid'",
        "alter table outbox.live_job add column mine text",
        "drop table outbox.live_job",
        "truncate outbox.live_job",
        "alter table outbox.audit disable trigger audit_stays",
        "create trigger mine before insert on outbox.live_job for each row execute function outbox.refuse_change()",
        "insert into outbox.schema_version (version) values (99)",
        "insert into outbox.api_key (name, prefix, digest, scopes) values ('x', 'x', sha256('x'), '{admin}')",
        "update outbox.api_key set scopes = '{admin}'",
        "update outbox.audit set actor = 'eve'",
        "delete from outbox.audit",
    ):
        assert await is_denied(raw[role], statement), statement


async def test_the_public_has_no_part_in_it(db: asyncpg.Connection) -> None:
    role = f"nobody_{uuid4().hex[:12]}"
    await db.execute(f"create role {role}")
    try:
        rights = await db.fetchrow(
            "select has_schema_privilege($1, 'outbox', 'usage') as usage, "
            "has_schema_privilege($1, 'outbox', 'create') as create",
            role,
        )
        assert tuple(rights) == (False, False)
        # What runs with the rights of its owner looks names up where nobody else can put any, and is not for everybody.
        powerful = await db.fetch(
            "select proname as name, proconfig as config, has_function_privilege($1, oid, 'execute') as open "
            "from pg_proc where pronamespace = 'outbox'::regnamespace and prosecdef",
            role,
        )
        assert {each["name"] for each in powerful} == {"add_partition", "drop_partition"}
        for each in powerful:
            assert (each["config"], each["open"]) == (["search_path=pg_catalog, pg_temp"], False), each["name"]
    finally:
        await db.execute(f"drop role {role}")


# Who enqueues.


async def test_the_enqueuer_enqueues_by_every_door_and_sees_nothing(
    engines: Mapping[str, AsyncEngine], raw: Mapping[str, asyncpg.Connection], db: asyncpg.Connection
) -> None:
    await db.execute("insert into outbox.queue (name, ceiling) values ('default', 100)")
    await db.execute(
        "insert into outbox.job_limit (scope, name, per_key, concurrency) values ('task', 'noop', false, 1)"
    )
    sessions, mine = sessions_of(engines["enqueuer"]), raw["enqueuer"]
    async with sessions.begin() as session:
        first = noop.options(group="g", tags=["a"], delay=60, tenant="t").enqueue(session, 1)
        await session.flush()
        noop.options(after=[first]).enqueue(session, 2)
    for _ in range(2):
        async with sessions.begin() as session:
            noop.options(key="k").enqueue(session, 3)
            noop.options(key="held", unique_for=60).enqueue(session, 4)
    async with sessions.begin() as session:
        Batch("all", [noop.job(n) for n in range(3)], on_complete=done).enqueue(session)
        await outbox.enqueue_many(session, [noop.job(n) for n in range(10)])
        assert await inbox.accept(session, "shop", "m-1")
    await mine.execute("select outbox.enqueue('noop', '{}', key => 'by sql', \"group\" => 'g')")
    assert await db.fetchval("select count(*) from outbox.live_job") == 2 + 2 + 3 + 10 + 1
    for statement in (
        "select payload from outbox.live_job",
        "select * from outbox.job",
        "select result from outbox.finished_job",
        "update outbox.live_job set state = 'running'",
        "update outbox.live_job set payload = '{}'",
        "update outbox.live_job set run_at = now()",
        "delete from outbox.live_job",
        "insert into outbox.live_job (task, state, lease_until) values ('noop', 'running', now())",
        "insert into outbox.live_job (task, fence) values ('noop', 7)",
        "insert into outbox.finished_job (id, task, state) values (gen_random_uuid(), 'noop', 'succeeded')",
        "select outbox.cancel_jobs(array(select id from outbox.live_job))",
        f"select outbox.finish('{first.id}', 0, null, null, null, null)",
        "update outbox.queue set paused_at = now()",
        "delete from outbox.job_limit",
        "select digest from outbox.api_key",
        "select actor from outbox.audit",
        "select outbox.add_partition(current_date + 30)",
        "select outbox.drop_partition(current_date)",
    ):
        assert await is_denied(mine, statement), statement


@outbox.task()
async def done(batch: BatchSummary) -> None: ...


async def test_replacing_a_job_takes_a_right_more(
    engines: Mapping[str, AsyncEngine], db: asyncpg.Connection, roles: Mapping[str, str]
) -> None:
    sessions = sessions_of(engines["enqueuer"])
    async with sessions() as session:
        noop.options(key="k", on_conflict="replace").enqueue(session, 1)
        with pytest.raises(DBAPIError, match="permission denied"):
            await session.flush()
    await db.execute(f"grant select, update on outbox.live_job to {roles['enqueuer']}")
    for n in (1, 2):
        async with sessions.begin() as session:
            noop.options(key="k", on_conflict="replace").enqueue(session, n)
    assert await db.fetchval("select payload ->> 'n' from outbox.live_job") == "2"


# Who works.


async def test_the_worker_works_and_keeps_house(
    engine: AsyncEngine,
    sessions: Sessions,
    database_url: str,
    db: asyncpg.Connection,
    roles: Mapping[str, str],
    engines: Mapping[str, AsyncEngine],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, logger="outbox")
    declared = Outbox(sessions=sessions_of(engines["worker"]))

    @declared.task(limit=Limit(concurrency=2, rate=1000, burst=10))
    async def plain(n: int, *, ctx: JobContext = INJECTED) -> int:
        ctx.keep(n)
        ctx.progress(1, 2)
        return n

    @declared.task(retry=Retry(max_attempts=2, delay=lambda _attempt, _exception: 0))
    async def breaks() -> None:
        raise ValueError("no")

    @declared.task()
    async def settles(session: AsyncSession = INJECTED) -> int:
        plain.enqueue(session, 99)
        return 1

    @declared.cron("* * * * *")
    @declared.task()
    async def every_minute() -> None: ...

    @declared.task()
    async def counted(batch: BatchSummary) -> None: ...

    async with sessions.begin() as session:
        given = [plain.options(group="g", key=f"k{n}").enqueue(session, n) for n in range(5)]
        given.append(plain.enqueue(session, 5))
        given.append(plain.options(after=given[-1:]).enqueue(session, 6))
        broken, settled = breaks.enqueue(session), settles.enqueue(session)
        Batch("all", [plain.job(n) for n in range(3)], on_complete=counted).enqueue(session)
    lost = await plant(engine, "expired", task="plain", payload={"n": 6})
    async with working(declared, url_of(database_url, roles["worker"])):
        await drained(engine)
        await in_state(engine, lost, State.SUCCEEDED)
        fired = await db.fetchval("select count(*) from outbox.schedule where name like '%every_minute%'")
    assert fired == 1
    assert all([(await read(engine, each.id)).state is State.SUCCEEDED for each in given])
    assert (await read(engine, broken.id)).state is State.FAILED
    assert (await read(engine, settled.id)).result == 1
    assert await db.fetchval("select count(*) from outbox.job where task = 'counted'") == 1
    assert await db.fetchval("select sum(count) from outbox.statistic") > 10
    assert "permission denied" not in caplog.text
    assert not [each for each in caplog.records if each.levelno > logging.WARNING]


async def test_the_worker_makes_and_drops_partitions_and_forgets_what_is_old(
    database_url: str, db: asyncpg.Connection, roles: Mapping[str, str]
) -> None:
    await db.execute("select outbox.add_partition((now() at time zone 'UTC')::date - 20)")
    tomorrow = await db.fetchval("select 'outbox.' || outbox.partition_name((now() at time zone 'UTC')::date + 1)")
    await db.execute(f"drop table {tomorrow}")
    await db.execute(
        """
        insert into outbox.finished_job_default (id, task, state, finished_at)
        values (gen_random_uuid(), 'noop', 'succeeded', now() - interval '19 days');
        insert into outbox.inbox (source, message_id, accepted_at) values ('shop', 'm', now() - interval '20 days');
        insert into outbox.held_key values ('noop', 'k', gen_random_uuid(), now() - interval '20 days');
        insert into outbox.batch (id, name, total, finished_at)
        values (gen_random_uuid(), 'b', 0, now() - interval '20 days');
        """
    )
    link = Link(url_of(database_url, roles["worker"]), WorkerSettings(), "test", timeout=5)
    try:
        assert await maintenance.keep_partitions(link, 14)
        await maintenance.mend_groups(link)
        await maintenance.rescue(link)
    finally:
        await link.close()
    assert await db.fetchval("select to_regclass($1)", tomorrow) is not None
    old = "select to_regclass('outbox.' || outbox.partition_name((now() at time zone 'UTC')::date - 20))"
    assert await db.fetchval(old) is None
    left = await db.fetchrow(
        """
        select (select count(*) from outbox.finished_job_default), (select count(*) from outbox.inbox),
               (select count(*) from outbox.held_key), (select count(*) from outbox.batch)
        """
    )
    assert tuple(left) == (0, 0, 0, 0)


async def test_the_worker_sees_no_results_keys_or_deeds(raw: Mapping[str, asyncpg.Connection]) -> None:
    for statement in (
        "select * from outbox.job",
        "select result from outbox.finished_job",
        "delete from outbox.finished_job",
        "update outbox.finished_job set result = null",
        "select digest from outbox.api_key",
        "select actor from outbox.audit",
        "insert into outbox.audit (actor, action, target) values ('eve', 'x', 'x')",
        "update outbox.queue set paused_at = now()",
    ):
        assert await is_denied(raw["worker"], statement), statement


# Who asks and steers over HTTP.


async def test_every_route_works_with_the_rights_of_the_api(
    engine: AsyncEngine, sessions: Sessions, engines: Mapping[str, AsyncEngine]
) -> None:
    async with sessions.begin() as session:
        _, key = await keys.create(session, "tester", [Scope.ADMIN])
    app, mine = FastAPI(), sessions_of(engines["api"])
    problem_handlers(app)
    app.include_router(outbox_router(outbox, mine, access=api_keys(mine)))
    headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": "k"}
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://shop.test") as client:
        for operation, method, path in routes(app):
            if operation == "jobs_events":
                continue  # it reads as jobs_get does
            kind = TARGETS.get(operation, "failed")
            names: dict[str, Any] = {"job_id": str(await plant(engine, kind, group_key=str(new_id())))}
            async with sessions.begin() as session:
                batch = Batch("b", [noop.job()])
                batch.enqueue(session)
            names |= {"batch_id": str(batch.id), "name": "x", "action": "retry"}
            if operation.startswith("schedules_") and operation not in ("schedules_put", "schedules_list"):
                await call(client, "schedules_put", "PUT", "/v1/schedules/{name}", headers)
            answer = await call(client, operation, method, path, headers, **names)
            assert answer.status_code < 300, (operation, answer.text)
        for action, kind in (
            ("cancel", "pending"),
            ("discard", "failed"),
            ("run", "scheduled"),
            ("priority", "pending"),
        ):
            body = {"ids": [str(await plant(engine, kind))], "priority": 2}
            done = await client.post(f"/v1/jobs/bulk/{action}", headers=headers, json=body)
            assert (done.status_code, done.json().get("changed")) == (200, 1), (action, done.text)


async def test_the_api_changes_no_arguments_and_no_results(
    raw: Mapping[str, asyncpg.Connection], engine: AsyncEngine
) -> None:
    await plant(engine)
    for statement in (
        "update outbox.live_job set payload = '{}'",
        "update outbox.live_job set task = 'other'",
        "update outbox.live_job set fence = fence + 1",
        "update outbox.live_job set lease_until = null",
        "update outbox.finished_job set result = null",
        "update outbox.inbox set answer = null",
        "select outbox.drop_partition(current_date)",
    ):
        assert await is_denied(raw["api"], statement), statement


async def test_who_could_enqueue_before_an_upgrade_can_after_it(
    roles: Mapping[str, str], database_url: str, engine: AsyncEngine
) -> None:
    for way, from_, to in ((schema.downgrade, schema.LATEST, 3), (schema.upgrade, 3, schema.LATEST)):
        async with engine.begin() as migrating:
            await migrating.run_sync(lambda sync, way=way, **span: way(execute_on(sync), **span), from_=from_, to=to)
    outbox = Outbox()

    @outbox.task()
    async def noop() -> None: ...

    as_enqueuer = address.engine(url_of(database_url, roles["enqueuer"]))
    async with AsyncSession(as_enqueuer) as session, session.begin():
        job = noop.enqueue(session)
    await as_enqueuer.dispose()
    assert (await read(engine, job.id)).state is State.PENDING
