"""Through PgBouncer in transaction mode, which gives every transaction another session: nothing is missing in it, and
nothing is left behind."""

import asyncio
import importlib.util
import logging
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from outbox import INJECTED, JobContext, Limit, Outbox, Retry, Snooze, State, migrate, schema
from outbox.connection import PLANNER, Link, dsn
from outbox.settings import WorkerSettings
from outbox.wakeup import CHANNEL, Notifier
from tests.database.test_plans import STATEMENTS, generic_plan, nodes
from tests.database.workers import drained, working
from tests.factories import plant_many, read
from tests.pooler import PROGRAM, pooled
from tests.waiting import eventually, until

SESSIONS = 3

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="there is no pgbouncer here; on Debian: apt install pgbouncer")


@pytest.fixture
async def pooler_url(database_url: str) -> AsyncIterator[str]:
    """The test's database by way of a pooler; at the end, nothing may be left in any of its sessions."""
    with pooled(database_url, sessions=SESSIONS) as url:
        yield url
        await _nothing_is_left_behind(url)


@pytest.fixture
async def pooled_engine(pooler_url: str) -> AsyncIterator[AsyncEngine]:
    """The engine that the documentation tells people to make."""
    path = Path(__file__).parents[2] / "docs" / "examples" / "pooler.py"
    spec = importlib.util.spec_from_file_location("pooler_example", path)
    assert spec is not None
    assert spec.loader is not None
    example: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    engine: AsyncEngine = example.engine_behind_pooler(pooler_url)
    yield engine
    await engine.dispose()


async def _nothing_is_left_behind(url: str) -> None:
    db = await asyncpg.connect(dsn(url), statement_cache_size=0)
    seen = set()
    for _ in range(10 * SESSIONS):
        async with db.transaction():
            row = await db.fetchrow(
                "select pg_backend_pid() as pid, array(select name from pg_prepared_statements) as prepared, "
                "array(select pg_listening_channels()) as listening, "
                "array(select name || '=' || setting from pg_settings "
                "where name = any ($1) and setting is distinct from reset_val) as changed",
                [*PLANNER, "lock_timeout", "idle_in_transaction_session_timeout"],
            )
        assert row is not None
        seen.add(row["pid"])
        assert (row["prepared"], row["listening"], row["changed"]) == ([], [], [])
    await db.close()
    assert seen


async def test_a_worker_runs_every_kind_of_job(
    engine: AsyncEngine, pooled_engine: AsyncEngine, pooler_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    sessions = async_sessionmaker(pooled_engine, expire_on_commit=False)
    outbox = Outbox(sessions=sessions)
    ran: list[str] = []

    @outbox.task()
    async def plain(n: int) -> int:
        return n

    @outbox.task(retry=Retry(max_attempts=3, base=0, cap=0))
    async def second_time_lucky(*, ctx: JobContext = INJECTED) -> str:
        if ctx.attempt == 1:
            raise ConnectionError("the first time")
        return "lucky"

    @outbox.task()
    async def later(*, ctx: JobContext = INJECTED) -> Snooze | str:
        return Snooze(0.01) if ctx.fence == 1 else "now"

    @outbox.task()
    async def in_order(step: str) -> None:
        ran.append(step)

    @outbox.task(limit=Limit(concurrency=1))
    async def one_at_a_time(n: int) -> int:
        return n

    @outbox.task()
    async def transactional(*, session: AsyncSession = INJECTED) -> str:
        plain.enqueue(session, 7)
        return "with it"

    async with sessions() as session:
        jobs = [
            *[plain.enqueue(session, n) for n in range(300)],
            second_time_lucky.enqueue(session),
            later.enqueue(session),
            *[in_order.options(group="g").enqueue(session, step) for step in "abc"],
            *[one_at_a_time.enqueue(session, n) for n in range(5)],
            *[transactional.enqueue(session) for _ in range(20)],
            plain.options(key="once").enqueue(session, 1),
        ]
        await session.commit()
    with caplog.at_level(logging.INFO, "outbox"):
        async with working(outbox, pooler_url, wake_up=True):
            await drained(engine)
    assert {(await read(engine, job.id)).state for job in jobs} == {State.SUCCEEDED}
    assert ran == ["a", "b", "c"]
    async with engine.connect() as link:
        assert await link.scalar(text("select count(*) from outbox.finished_job where result = '7'")) == 21
    said = [record.__dict__.get("event") for record in caplog.records]
    assert said.count("wake_up_off") == 1
    assert not {"database_lost", "lease_lost", "settle_failed"} & set(said)


async def test_a_link_knows_whether_there_is_a_pooler(pooler_url: str, link: Link) -> None:
    await link.fetch("select 1")
    assert not link.is_pooled
    through = Link(pooler_url, WorkerSettings(), "test")
    await through.fetch("select 1")
    assert through.is_pooled
    await through.close()


async def test_a_pooler_that_swallows_the_settings_is_found_too(database_url: str) -> None:
    swallowed = ", ".join([*PLANNER, "tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count",
                           "idle_in_transaction_session_timeout", "default_transaction_isolation"])  # fmt: skip
    with pooled(database_url, ignored=swallowed) as url:
        link = Link(url, WorkerSettings(), "test")
        rows = await link.fetch("select current_setting('plan_cache_mode') as mode")
        assert link.is_pooled
        assert rows[0]["mode"] == "force_generic_plan"
        await link.close()
        await _nothing_is_left_behind(url)


async def test_many_links_share_few_sessions(pooler_url: str) -> None:
    links = [Link(pooler_url, WorkerSettings(), f"test {n}") for n in range(4 * SESSIONS)]

    async def use(link: Link) -> None:
        for n in range(50):
            assert (await link.fetch("select $1::integer as n", n))[0]["n"] == n
            async with link.transaction():
                await link.fetch("select set_config('outbox.test', $1, true)", str(n))
                assert (await link.fetch("select current_setting('outbox.test') as n"))[0]["n"] == str(n)

    await asyncio.gather(*map(use, links))
    await asyncio.gather(*[link.close() for link in links])


async def test_many_transactions_of_requests_share_few_sessions(pooled_engine: AsyncEngine) -> None:
    async def use(kind: type) -> None:
        # The same statement again and again: one that is kept would meet a session that knows another one.
        statement = text(f"select cast(:n as {'integer' if kind is int else 'text'})")
        for n in range(50):
            async with AsyncSession(pooled_engine) as session, session.begin():
                assert await session.scalar(statement, {"n": kind(n)}) == kind(n)

    await asyncio.gather(*[use(int if n % 2 else str) for n in range(4 * SESSIONS)])


async def test_every_statement_of_a_worker_has_its_settings(pooler_url: str) -> None:
    link = Link(pooler_url, WorkerSettings(), "test", lock_timeout=2)
    expected = {**PLANNER, "lock_timeout": "2s", "idle_in_transaction_session_timeout": "10s"}
    ask = "select name, current_setting(name) as value from unnest($1::text[]) as name"
    for _ in range(2 * SESSIONS):
        assert {row["name"]: row["value"] for row in await link.fetch(ask, list(expected))} == expected
    await link.close()


async def test_transactions_are_read_committed_whatever_the_database_prefers(
    pooler_url: str, db: asyncpg.Connection
) -> None:
    name = await db.fetchval("select current_database()")
    await db.execute(f"alter database \"{name}\" set default_transaction_isolation = 'repeatable read'")
    link = Link(pooler_url, WorkerSettings(), "test")
    assert (await link.fetch("show transaction_isolation"))[0][0] == "read committed"
    async with link.transaction():
        assert (await link.fetch("show transaction_isolation"))[0][0] == "read committed"
    await link.close()


async def test_a_failed_statement_leaves_its_session_and_the_link_as_they_were(pooler_url: str) -> None:
    link = Link(pooler_url, WorkerSettings(), "test")
    for _ in range(2 * SESSIONS):
        with pytest.raises(asyncpg.DivisionByZeroError):
            await link.fetch("select 1 / $1::integer", 0)
        assert (await link.fetch("select 2 as n"))[0]["n"] == 2
    await link.close()


@pytest.mark.parametrize("analysed", ["empty", "never"])
async def test_every_statement_keeps_its_plan(
    engine: AsyncEngine, db: asyncpg.Connection, pooler_url: str, analysed: str
) -> None:
    await db.execute("alter table outbox.live_job set (autovacuum_enabled = off)")
    if analysed == "empty":
        await db.execute("vacuum analyze outbox.live_job")
    await plant_many(engine, 20_000)
    link = Link(pooler_url, WorkerSettings(), "test")
    connection = await link.connection()
    for name, indexes in STATEMENTS.items():
        async with link.transaction():
            plan = await generic_plan(connection, name)
        reads = [
            node
            for node in nodes(plan)
            if node.get("Relation Name") == "live_job" and node["Node Type"] != "ModifyTable"
        ]
        assert {node.get("Index Name") for node in reads} == indexes, (name, plan)
    await link.close()


@pytest.mark.slow
async def test_what_a_worker_runs_never_reads_the_whole_table(
    engine: AsyncEngine, db: asyncpg.Connection, pooler_url: str
) -> None:
    await db.execute("alter table outbox.live_job set (autovacuum_enabled = off)")
    await db.execute("vacuum analyze outbox.live_job")
    scans = "select seq_scan from pg_stat_user_tables where relid = 'outbox.live_job'::regclass"
    before = await db.fetchval(scans)
    outbox = Outbox()

    @outbox.task()
    async def noop(n: int) -> int:
        return n

    await plant_many(engine, 5000)
    async with working(outbox, pooler_url, queues={"default": 100}):

        async def done() -> bool:
            # Not by a count of live jobs, which would read the whole table itself.
            return bool(await db.fetchval("select count(*) = 5000 from outbox.finished_job"))

        await eventually(done)

    async def told() -> bool:
        # A session tells what it has read a second later. Each job is settled over the primary key.
        return bool(await db.fetchval(scans.replace("seq_scan", "idx_scan >= 5000")))

    await eventually(told)
    assert await db.fetchval(scans) == before


async def test_hints_go_through_to_workers_that_are_connected_directly(
    database_url: str, pooled_engine: AsyncEngine
) -> None:
    listener = await asyncpg.connect(dsn(database_url))
    heard: list[str] = []
    await listener.add_listener(CHANNEL, lambda *said: heard.append(str(said[-1])))
    outbox = Outbox()

    @outbox.task()
    async def noop() -> None: ...

    async with Notifier(pooled_engine):
        for n in range(2 * SESSIONS):
            async with AsyncSession(pooled_engine) as session:
                noop.options(queue=f"q{n}").enqueue(session)
                await session.commit()
            await until(partial(heard.__contains__, f"q{n}"))
    await listener.close()


async def test_migrate_works_through_the_pooler(pooler_url: str) -> None:
    assert await migrate.migrate(pooler_url) == (schema.LATEST, schema.LATEST)
