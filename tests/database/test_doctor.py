"""Each thing that can be wrong is found when it is, with what to do, and not when it is not."""

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from outbox import doctor, maintenance
from outbox.connection import Link, dsn
from outbox.doctor import CHECKS, Finding
from outbox.presence import Presence
from tests.factories import ago, new_id, plant, plant_many
from tests.pooler import PROGRAM, pooled


async def diagnosed(engine: AsyncEngine) -> dict[str, list[Finding]]:
    async with engine.connect() as connection:
        found = await doctor.diagnose(connection)
    assert [each.name for each in found.settings] == sorted(doctor.SETTINGS)
    by_check: dict[str, list[Finding]] = {}
    for each in found.findings:
        by_check.setdefault(each.check, []).append(each)
        assert each.fix or each.level == "ok", each
    return by_check


def levels(found: dict[str, list[Finding]], check: str) -> list[str]:
    return [each.level for each in found.get(check, [])]


async def present(link: Link) -> None:
    await Presence(id=new_id(), queues={"default": 1}, tasks={"noop": 1}, lease=30.0).appear(link)


async def test_where_nothing_is_wrong_nothing_is_found(engine: AsyncEngine, link: Link) -> None:
    await present(link)
    found = await diagnosed(engine)
    # The server of the tests is careless on purpose.
    assert {each.check for group in found.values() for each in group if each.level != "ok"} <= {"durability"}
    assert len(found) >= len(CHECKS) - 3  # three say nothing where all is well


async def test_a_server_that_may_lose_what_was_committed(engine: AsyncEngine, db: asyncpg.Connection) -> None:
    fsync = await db.fetchval("select current_setting('fsync')")
    expected = "problem" if fsync == "off" else "ok"
    assert levels(await diagnosed(engine), "durability") == [expected]


async def test_no_worker_and_jobs_that_nobody_takes(engine: AsyncEngine, link: Link) -> None:
    assert levels(await diagnosed(engine), "workers") == ["problem"]
    await present(link)
    await plant(engine, task="unknown")
    await plant(engine, version=2)
    await plant(engine, queue="other")
    await plant(engine)
    found = await diagnosed(engine)
    assert levels(found, "workers") == ["ok"]
    assert len(found["unserved"]) == 3
    assert any("'unknown'" in each.text for each in found["unserved"])


async def test_jobs_of_a_dead_worker_that_nobody_rescues(engine: AsyncEngine) -> None:
    await plant(engine, "expired")
    assert levels(await diagnosed(engine), "leases") == ["ok"]
    await plant(engine, "running", lease_until=ago(90))
    assert levels(await diagnosed(engine), "leases") == ["problem"]


async def test_who_holds_vacuum_up_is_named_with_how_to_end_it(
    engine: AsyncEngine, db: asyncpg.Connection, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "HELD", 0)
    holder = await asyncpg.connect(dsn(database_url), server_settings={"application_name": "the report"})
    async with holder.transaction(isolation="repeatable_read"):
        await holder.fetch("select count(*) from outbox.live_job")
        pid = holder.get_server_pid()
        [finding] = [each for each in (await diagnosed(engine))["horizon"] if "the report" in each.text]
        assert (finding.level, f"pg_terminate_backend({pid})" in finding.fix) == ("warning", True)
        assert "count(*)" in finding.text
    await holder.close()


async def test_a_prepared_transaction_is_named_too(
    engine: AsyncEngine, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "HELD", 0)
    if await db.fetchval("select current_setting('max_prepared_transactions')") == "0":
        pytest.skip("this server has no prepared transactions")
    await db.execute("begin; create table left_behind (); prepare transaction 'it''s left'")
    try:
        found = (await diagnosed(engine))["horizon"]
        assert any("rollback prepared 'it''s left'" in each.fix for each in found)
    finally:
        await db.execute("rollback prepared 'it''s left'")


async def test_dead_rows_beyond_reason(engine: AsyncEngine, db: asyncpg.Connection) -> None:
    await db.execute("alter table outbox.live_job set (autovacuum_enabled = off)")
    await plant_many(engine, 101_000)
    await db.execute("delete from outbox.live_job")
    await db.execute("select pg_stat_force_next_flush()")
    assert levels(await diagnosed(engine), "bloat") == ["warning"]
    await db.execute("vacuum outbox.live_job")
    assert levels(await diagnosed(engine), "bloat") == ["ok"]


async def test_an_index_that_is_not_valid(engine: AsyncEngine, db: asyncpg.Connection) -> None:
    assert "indexes" not in await diagnosed(engine)
    await db.execute("create index broken on outbox.live_job (task)")
    await db.execute("update pg_index set indisvalid = false where indexrelid = 'outbox.broken'::regclass")
    [finding] = (await diagnosed(engine))["indexes"]
    assert (finding.level, finding.fix) == ("problem", 'reindex index concurrently outbox."broken";')


async def test_a_schema_of_another_release(engine: AsyncEngine, db: asyncpg.Connection) -> None:
    await db.execute("insert into outbox.schema_version (version) values (99)")
    [finding] = (await diagnosed(engine))["schema"]
    assert (finding.level, "Upgrade the library" in finding.fix) == ("problem", True)
    await db.execute("delete from outbox.schema_version where version > 1")
    [finding] = (await diagnosed(engine))["schema"]
    assert (finding.level, "outbox migrate" in finding.fix) == ("problem", True)


async def test_without_a_schema_only_that_is_said_of_it(engine: AsyncEngine, db: asyncpg.Connection) -> None:
    await db.execute("drop schema outbox cascade")
    found = await diagnosed(engine)
    assert (levels(found, "schema"), "outbox migrate" in found["schema"][0].fix) == (["problem"], True)
    assert "could not be checked" not in str(found)


async def test_a_clock_that_is_wrong(engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert levels(await diagnosed(engine), "clock") == ["ok"]
    monkeypatch.setattr(doctor, "SKEW", -1.0)
    assert levels(await diagnosed(engine), "clock") == ["warning"]


async def test_partitions_that_are_missing_and_rows_without_one(
    engine: AsyncEngine, db: asyncpg.Connection, link: Link
) -> None:
    await plant(engine, "succeeded", finished_at=ago(100 * 86_400))
    found = await diagnosed(engine)
    assert levels(found, "partitions") == ["warning"]
    await maintenance.keep_partitions(link, 14)
    assert levels(await diagnosed(engine), "partitions") == ["ok"]
    tomorrow = await db.fetchval("select outbox.partition_name((now() at time zone 'UTC')::date + 1)")
    await db.execute(f"drop table outbox.{tomorrow}")
    assert levels(await diagnosed(engine), "partitions") == ["warning"]


@pytest.mark.skipif(PROGRAM is None, reason="there is no pgbouncer here; on Debian: apt install pgbouncer")
async def test_a_pooler_is_noticed(engine: AsyncEngine, database_url: str) -> None:
    from sqlalchemy.ext.asyncio import create_async_engine

    assert "directly" in (await diagnosed(engine))["pooler"][0].text
    with pooled(database_url) as url:
        through = create_async_engine(url, connect_args={"statement_cache_size": 0})
        assert "pooler is between" in (await diagnosed(through))["pooler"][0].text
        await through.dispose()


async def test_a_check_that_fails_is_a_finding_and_the_others_go_on(
    engine: AsyncEngine, db: asyncpg.Connection
) -> None:
    await db.execute("drop table outbox.worker cascade")
    async with engine.connect() as connection:
        found = await doctor.diagnose(connection)
    failed = [each for each in found.findings if "could not be checked" in each.text]
    assert {each.check for each in failed} == {"workers", "unserved"}
    assert any(each.check == "partitions" for each in found.findings)


async def test_reads_only(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        await connection.execute(text("set transaction read only"))
        found = await doctor.diagnose(connection)
    assert not [each for each in found.findings if "could not be checked" in each.text]
