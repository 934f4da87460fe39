"""The history of migrations: up, down, up; the same tables as in the models; and harmless beside others."""

import asyncio
import subprocess

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from api import models
from tests.service.conftest import alembic
from tests.waiting import eventually

FACTS = """
    select coalesce(string_agg(fact, E'\\n' order by fact), '') from (
        select n.nspname || '.' || c.relname || ' ' || c.relkind::text from pg_class c
        join pg_namespace n on n.oid = c.relnamespace
        where n.nspname in ('public', 'outbox') and c.relname !~ '^(alembic_version|finished_job_[0-9])'
        union all select conrelid::regclass || ' ' || pg_get_constraintdef(k.oid) from pg_constraint k
        join pg_namespace n on n.oid = k.connamespace
        where n.nspname in ('public', 'outbox') and conrelid::regclass::text !~ '(alembic_version|finished_job_[0-9])'
        union all select p.proname || pg_get_function_identity_arguments(p.oid) from pg_proc p
        join pg_namespace n on n.oid = p.pronamespace where n.nspname in ('public', 'outbox')
    ) as facts (fact)
"""


async def facts(url: str) -> str:
    """Everything that migrations have made, as text."""
    engine = create_async_engine(url, poolclass=NullPool)
    async with engine.connect() as connection:
        return str(await connection.scalar(text(FACTS)))


async def run(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Alembic in a process of its own."""
    return await asyncio.to_thread(alembic, url, *arguments)


async def test_up_down_and_up_again(empty_url: str) -> None:
    for command, target in (("upgrade", "head"), ("downgrade", "base"), ("upgrade", "head")):
        done = await run(empty_url, command, target)
        assert done.returncode == 0, done.stderr
        made = await facts(empty_url)
        if command == "upgrade":
            assert "outbox.live_job r" in made
            assert "public.orders r" in made
        else:
            assert made == ""
    heads = await run(empty_url, "heads")
    assert len(heads.stdout.splitlines()) == 1, "one line, one head"


async def test_the_models_are_the_tables(database_url: str) -> None:
    def compare(connection: Connection) -> object:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        return compare_metadata(context, models.metadata)

    engine = create_async_engine(database_url, poolclass=NullPool)
    async with engine.connect() as connection:
        assert await connection.run_sync(compare) == []


async def test_the_models_have_the_checks_and_keys_of_the_tables(database_url: str, empty_url: str) -> None:
    # Alembic's comparison sees neither CHECK constraints nor what a foreign key does on delete.
    engine = create_async_engine(empty_url, poolclass=NullPool)
    async with engine.begin() as connection:
        await connection.run_sync(models.metadata.create_all)
    migrated = [fact for fact in (await facts(database_url)).splitlines() if "outbox." not in fact]
    wanted = (await facts(empty_url)).splitlines()
    assert [fact for fact in wanted if fact not in migrated] == []


async def test_autogenerate_leaves_everything_alone(database_url: str) -> None:
    done = await run(database_url, "check")
    assert done.returncode == 0, done.stdout + done.stderr


async def test_two_migrators_at_once_do_no_harm(empty_url: str) -> None:
    done = await asyncio.gather(*(run(empty_url, "upgrade", "head") for _ in range(2)))
    assert [each.returncode for each in done] == [0, 0], done
    assert sum("Running upgrade" in each.stderr for each in done) == 1


async def test_a_migrator_gives_way_to_a_lock_and_comes_back(database_url: str) -> None:
    engine = create_async_engine(database_url, poolclass=NullPool)
    async with engine.connect() as holder:
        await holder.execute(text("lock table customers in access share mode"))
        task = asyncio.create_task(run(database_url, "downgrade", "0001"))
        waiting = text(
            "select 1 from pg_locks where not granted and relation = 'customers'::regclass and locktype = 'relation'"
        )
        async with engine.connect() as watcher:
            looking = await watcher.execution_options(isolation_level="AUTOCOMMIT")
            await eventually(lambda: looking.scalar(waiting))

            async def has_given_way() -> bool:
                return await looking.scalar(waiting) is None

            await eventually(has_given_way)
            assert not task.done()
        await holder.rollback()
    done = await task
    assert done.returncode == 0, done.stderr
    assert "customers" not in await facts(database_url)


async def test_the_sql_can_be_had_for_review() -> None:
    done = await run("postgresql://nobody@127.0.0.1:1/none", "upgrade", "head", "--sql")
    assert done.returncode == 0, done.stderr
    assert "create schema outbox" in done.stdout
    assert "CREATE TABLE orders" in done.stdout
