"""The schema goes up, down and up again, is what SQLAlchemy is told, and is migrated by one at a time."""

import asyncio
import re
from collections.abc import Callable
from typing import Any

import asyncpg
import pytest
from sqlalchemy import Column, Table, inspect
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncEngine

from outbox import migrate, schema, status, table
from outbox.connection import dsn
from outbox.errors import SchemaMismatch
from outbox.job import Job
from tests import factories
from tests.waiting import eventually

DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]

OBJECTS = """
select 'relation ' || c.relkind::text || ' ' || c.relname || ' ' || coalesce(pg_get_expr(c.relpartbound, c.oid), '')
    as what
from pg_class c where c.relnamespace = to_regnamespace('outbox')
union all
select 'function ' || p.oid::regprocedure || ' ' || md5(p.prosrc)
from pg_proc p where p.pronamespace = to_regnamespace('outbox')
union all
select 'column ' || c.relname || ' ' || a.attname || ' ' || format_type(a.atttypid, a.atttypmod) || a.attnotnull
    || coalesce(pg_get_expr(d.adbin, d.adrelid), '')
from pg_attribute a join pg_class c on c.oid = a.attrelid
left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
where c.relnamespace = to_regnamespace('outbox') and a.attnum > 0
union all
select 'constraint ' || conrelid::regclass || ' ' || conname || ' ' || pg_get_constraintdef(oid)
from pg_constraint where connamespace = to_regnamespace('outbox')
union all
select 'comment ' || objsubid || ' ' || description from pg_description
where objoid in (select oid from pg_class where relnamespace = to_regnamespace('outbox'))
order by 1
"""


async def objects(db: asyncpg.Connection) -> list[str]:
    return [row["what"] for row in await db.fetch(OBJECTS)]


async def move(engine: AsyncEngine, way: Callable[..., None], from_: int, to: int) -> None:
    async with engine.begin() as connection:
        await connection.run_sync(lambda sync: way(factories.execute_on(sync), from_=from_, to=to))


async def upgrade(engine: AsyncEngine) -> None:
    await move(engine, schema.upgrade, 0, schema.LATEST)


async def downgrade(engine: AsyncEngine) -> None:
    await move(engine, schema.downgrade, schema.LATEST, 0)


async def test_down_and_up_again_is_what_it_was(engine: AsyncEngine, db: asyncpg.Connection) -> None:
    before = await objects(db)
    assert len(before) > 50
    await factories.plant(engine)
    await factories.plant(engine, "failed")
    await downgrade(engine)
    assert await objects(db) == []
    assert await db.fetchval("select to_regnamespace('outbox')") is None
    await upgrade(engine)
    assert await objects(db) == before


async def test_a_downgrade_takes_nothing_with_it_that_is_not_its_own(
    engine: AsyncEngine, db: asyncpg.Connection
) -> None:
    await db.execute("create view public.mine as select id from outbox.job")
    with pytest.raises(Exception, match="depend"):
        await downgrade(engine)
    assert await db.fetchval("select count(*) from public.mine") == 0


async def test_an_upgrade_that_is_rolled_back_leaves_nothing(engine: AsyncEngine, db: asyncpg.Connection) -> None:
    await downgrade(engine)
    async with engine.connect() as connection:
        await connection.run_sync(lambda sync: schema.upgrade(factories.execute_on(sync), from_=0, to=1))
        await connection.rollback()
    assert await objects(db) == []


async def test_jobs_go_up_and_down_with_the_versions(engine: AsyncEngine, db: asyncpg.Connection) -> None:
    await downgrade(engine)
    await move(engine, schema.upgrade, 0, 1)
    await db.execute(
        """
        select outbox.enqueue('noop', '{"n": 1}', tags => '["t"]');
        insert into outbox.finished_job (id, task, state, result) values (outbox.uuid7(), 'noop', 'succeeded', '1')
        """
    )
    whole = "select jsonb_agg(to_jsonb(job) order by id) from outbox.job"
    before = await db.fetchval(whole)
    for version in range(1, schema.LATEST):
        await move(engine, schema.upgrade, version, version + 1)
    assert [job.state for job in await factories.read_all(engine)] == ["pending", "succeeded"]
    await move(engine, schema.downgrade, schema.LATEST, 1)
    assert await db.fetchval(whole) == before
    await move(engine, schema.upgrade, 1, schema.LATEST)


@pytest.mark.parametrize(("from_", "to"), [(0, 0), (1, 1), (1, 0), (0, schema.LATEST + 1), (-1, 1)])
def test_a_way_up_that_does_not_exist_is_refused(from_: int, to: int) -> None:
    said: list[str] = []
    with pytest.raises(SchemaMismatch, match="no way"):
        schema.upgrade(said.append, from_=from_, to=to)
    assert said == []


def test_a_way_down_that_does_not_exist_is_refused() -> None:
    with pytest.raises(SchemaMismatch, match="no way"):
        schema.downgrade(lambda _statement: None, from_=0, to=1)


def test_every_statement_is_one_statement() -> None:
    statements = [each for version in schema.VERSIONS.values() for each in (*version.UP, *version.DOWN)]
    for statement in statements:
        code = re.sub(r"\$\$.*?\$\$|'[^']*'", "", statement, flags=re.DOTALL)
        assert ";" not in code
        # Alembic and SQLAlchemy would take these for parameters, inside a function's body as well.
        assert not re.search(r"(?<![:\w]):[a-zA-Z_]", statement)


# What SQLAlchemy is told is what is there.


@pytest.mark.parametrize("described", [table.live_job, table.finished_job], ids=lambda each: each.name)
async def test_the_tables_are_what_sqlalchemy_is_told(
    engine: AsyncEngine, db: asyncpg.Connection, described: Table
) -> None:
    async with engine.connect() as connection:
        there: list[Any] = await connection.run_sync(
            lambda sync: inspect(sync).get_columns(described.name, schema="outbox")
        )
    assert [column["name"] for column in there] == [column.name for column in described.columns]
    for column, found in zip(described.columns, there, strict=True):
        assert _type(column) == found["type"].compile(DIALECT), column
        assert column.nullable == found["nullable"], column
        assert _default(column) == re.sub(r"::[a-z]+", "", found["default"] or ""), column

    indexes = {
        row["indexname"]: row["indexdef"]
        for row in await db.fetch(
            "select indexname, indexdef from pg_indexes where schemaname = 'outbox' and tablename = $1", described.name
        )
    }
    assert indexes.pop(f"{described.name}_pkey").endswith(f"({', '.join(c.name for c in described.primary_key)})")
    told = {
        str(index.name): (
            ", ".join(column.name for column in index.columns),
            str(index.dialect_options["postgresql"]["where"]),
        )
        for index in described.indexes
    }
    seen = {}
    for name, definition in indexes.items():
        match = re.search(r"USING btree \((.*?)\)(?: WHERE \((.*)\))?$", definition)
        assert match, definition
        seen[name] = (match[1], (match[2] or "None").replace("::text", "").lower())
    assert seen == {name: (columns, where.lower()) for name, (columns, where) in told.items()}


def _type(column: Column[Any]) -> str:
    return column.type.compile(DIALECT)


def _default(column: Column[Any]) -> str:
    return "" if column.server_default is None else str(column.server_default.arg)  # type: ignore[attr-defined]


async def test_the_checks_are_these(db: asyncpg.Connection) -> None:
    rows = await db.fetch(
        """
        select conname, pg_get_constraintdef(oid) as definition from pg_constraint
        where contype = 'c' and conrelid in ('outbox.live_job'::regclass, 'outbox.finished_job'::regclass)
        """
    )
    checks = {row["conname"]: re.sub(r"::[a-z]+(\[\])?|[()]", "", row["definition"]).lower() for row in rows}
    assert checks == {
        "live_job_state": "check state = any array['pending', 'running']",
        "live_job_lease": "check state = 'running' = lease_until is not null",
        "live_job_priority": "check priority >= 0 and priority <= 3",
        "live_job_key_length": "check lengthkey >= 1 and lengthkey <= 200",
        "live_job_limit_key_length": "check lengthlimit_key <= 200",
        "live_job_tenant_length": "check lengthtenant >= 1 and lengthtenant <= 200",
        "live_job_group_length": "check lengthgroup_key >= 1 and lengthgroup_key <= 200",
        "live_job_blocked": "check blocked is null or state = 'pending' and blocked = 'after' "
        "or blocked = any array['new', 'group'] and group_key is not null",
        "finished_job_blocked": "check blocked is null",
        "live_job_names": "check lengthtask >= 1 and lengthtask <= 200 and lengthqueue >= 1 and lengthqueue <= 200",
        "live_job_counts": "check attempt >= 0 and lost >= 0 and fence >= 0 and max_attempts >= 1",
        "live_job_payload": "check jsonb_typeofpayload = 'object'",
        "live_job_errors": "check jsonb_typeoferrors = 'array'",
        "live_job_tags": checks["live_job_tags"],
        "live_job_headers": "check jsonb_typeofheaders = 'object' and lengthheaders <= 8192",
        "finished_job_state": "check state = any array['succeeded', 'failed', 'cancelled']",
        "finished_job_lease": "check lease_until is null",
    }
    assert checks["live_job_tags"].startswith("check jsonb_typeoftags = 'array'")


async def test_the_view_and_the_noun_have_the_same_fields(db: asyncpg.Connection) -> None:
    rows = await db.fetch(
        "select attname from pg_attribute where attrelid = 'outbox.job'::regclass and attnum > 0 order by attnum"
    )
    names = [row["attname"] for row in rows]
    assert set(names) == set(Job.__dataclass_fields__) == {column.name for column in table.job.columns}
    assert status.MAX_PAGE


async def test_everything_has_a_comment(db: asyncpg.Connection) -> None:
    without = await db.fetch(
        """
        select c.relname || '.' || a.attname as name from pg_attribute a join pg_class c on c.oid = a.attrelid
        where c.oid in ('outbox.live_job'::regclass, 'outbox.finished_job'::regclass)
          and a.attnum > 0 and not a.attisdropped and col_description(c.oid, a.attnum) is null
        union all
        select c.relname from pg_class c
        where c.relnamespace = 'outbox'::regnamespace and c.relkind in ('r', 'p', 'v')
          and obj_description(c.oid, 'pg_class') is null and c.relname !~ '[0-9]{8}$'
        union all
        select p.proname from pg_proc p
        where p.pronamespace = 'outbox'::regnamespace and obj_description(p.oid, 'pg_proc') is null
        """
    )
    assert [row["name"] for row in without] == []


# Migrating without Alembic.


async def test_an_empty_database_is_migrated_once(
    engine: AsyncEngine, database_url: str, db: asyncpg.Connection
) -> None:
    before = await objects(db)
    await downgrade(engine)
    assert await migrate.migrate(database_url) == (0, schema.LATEST)
    assert await migrate.migrate(database_url) == (schema.LATEST, schema.LATEST)
    assert await objects(db) == before
    assert await migrate.installed(db) == schema.LATEST


async def test_many_migrators_at_once_do_the_work_once(engine: AsyncEngine, database_url: str) -> None:
    await downgrade(engine)
    answers = await asyncio.gather(*(migrate.migrate(database_url) for _ in range(6)))
    assert sorted(answers) == [(0, schema.LATEST)] + [(schema.LATEST, schema.LATEST)] * 5


async def test_a_database_that_is_ahead_is_refused(database_url: str, db: asyncpg.Connection) -> None:
    await db.execute("insert into outbox.schema_version (version) values (99)")
    with pytest.raises(SchemaMismatch, match="99"):
        await migrate.migrate(database_url)


async def test_a_migrator_waits_for_another_one(engine: AsyncEngine, database_url: str, db: asyncpg.Connection) -> None:
    await downgrade(engine)
    transaction = db.transaction()
    await transaction.start()
    await db.execute("select pg_advisory_xact_lock($1)", schema.LOCK_KEY)
    migrating = asyncio.create_task(migrate.migrate(database_url))

    async def waits() -> bool:
        query = "select exists (select from pg_locks where locktype = 'advisory' and not granted)"
        return bool(await db.fetchval(query))

    await eventually(waits)
    assert not migrating.done()
    await transaction.rollback()
    assert await migrating == (0, schema.LATEST)


async def test_a_locked_catalogue_is_tried_again(
    engine: AsyncEngine, database_url: str, db: asyncpg.Connection
) -> None:
    await downgrade(engine)
    blocker = await asyncpg.connect(dsn(database_url))
    await blocker.execute("begin; create schema outbox")  # not committed: the migrator must wait for its fate
    migrating = asyncio.create_task(migrate.migrate(database_url))

    async def gave_up_once() -> bool:
        """The first try waited for a lock, and then let go of it."""
        waiting = "select exists (select from pg_locks where not granted)"
        await eventually(lambda: db.fetchval(waiting))
        await eventually(lambda: db.fetchval(f"select not ({waiting.removeprefix('select ')})"))
        return True

    assert await gave_up_once()
    assert not migrating.done()
    await blocker.execute("rollback")
    await blocker.close()
    assert await migrating == (0, schema.LATEST)
