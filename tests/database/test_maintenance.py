"""Partitions are made ahead and dropped by age, without ever standing in a settle's way."""

import logging

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from outbox import Outbox, State, claim, heartbeat, maintenance
from outbox.connection import Link
from outbox.outcome import Finished
from tests import factories
from tests.database.workers import working
from tests.factories import ago, held, plant
from tests.waiting import eventually, until

DAY = 86_400.0


async def days(db: asyncpg.Connection) -> list[int]:
    """The days that have a partition, counted from today."""
    rows = await db.fetch(
        """
        select to_date(right(relname, 8), 'YYYYMMDD') - (now() at time zone 'UTC')::date as day
        from pg_inherits join pg_class child on child.oid = inhrelid
        where inhparent = 'outbox.finished_job'::regclass and relname <> 'finished_job_default' order by 1
        """
    )
    return [row["day"] for row in rows]


async def drop_all(db: asyncpg.Connection) -> None:
    for row in await db.fetch(
        """
        select relname from pg_inherits join pg_class child on child.oid = inhrelid
        where inhparent = 'outbox.finished_job'::regclass and relname <> 'finished_job_default'
        """
    ):
        await db.execute(f"drop table outbox.{row[0]}")


async def add(db: asyncpg.Connection, day: int) -> bool:
    answer = await db.fetchval("select outbox.add_partition((now() at time zone 'UTC')::date + $1::integer)", day)
    return bool(answer)


async def test_today_and_the_coming_days_have_partitions(db: asyncpg.Connection, link: Link) -> None:
    await drop_all(db)
    await maintenance.keep_partitions(link, 14)
    assert await days(db) == [0, 1, 2, 3]
    await maintenance.keep_partitions(link, 14)
    assert await days(db) == [0, 1, 2, 3]


async def test_partitions_past_retention_are_dropped_whole(
    engine: AsyncEngine, db: asyncpg.Connection, link: Link
) -> None:
    for day in (-16, -15, -14, -1):
        assert await add(db, day)
    gone = await plant(engine, "succeeded", finished_at=ago(15 * DAY))
    kept = await plant(engine, "succeeded", finished_at=ago(14 * DAY))
    await maintenance.keep_partitions(link, 14)
    assert await days(db) == [-14, -1, 0, 1, 2, 3]
    assert [job.id for job in await factories.read_all(engine)] == [kept] != [gone]


async def test_jobs_that_live_are_never_pruned(engine: AsyncEngine, link: Link) -> None:
    ancient = {"created_at": ago(5000 * DAY), "run_at": ago(5000 * DAY)}
    for kind in ("pending", "running", "expired", "cancelling"):
        await plant(engine, kind, **ancient)
    await plant(engine, "scheduled")
    before = await factories.read_all(engine)
    await maintenance.keep_partitions(link, 1)
    assert await factories.read_all(engine) == before


async def test_what_fell_into_the_default_partition_is_pruned_by_age(
    engine: AsyncEngine, db: asyncpg.Connection, link: Link
) -> None:
    await plant(engine, "succeeded", finished_at=ago(15 * DAY))
    kept = await plant(engine, "failed", finished_at=ago(13 * DAY))
    assert await db.fetchval("select count(*) from outbox.finished_job_default") == 2
    await maintenance.keep_partitions(link, 14)
    assert [job.id for job in await factories.read_all(engine)] == [kept]


async def test_a_day_without_a_partition_loses_no_settle(
    engine: AsyncEngine, db: asyncpg.Connection, link: Link
) -> None:
    await drop_all(db)
    id = await plant(engine, "running")
    assert await claim.settle(link, [(held(id), Finished(State.SUCCEEDED))]) == []
    assert await db.fetchval("select count(*) from outbox.finished_job_default") == 1
    await maintenance.keep_partitions(link, 14)  # today's cannot be made any more, the others can
    assert await days(db) == [1, 2, 3]
    assert (await factories.read(engine, id)).state is State.SUCCEEDED


async def test_nobody_waits_for_a_table_that_is_in_use(engine: AsyncEngine, db: asyncpg.Connection, link: Link) -> None:
    assert await add(db, -20)
    await drop_all_but(db, -20)
    async with db.transaction():
        await db.execute("select from outbox.finished_job for update")
        assert not await maintenance.keep_partitions(link, 14)
        assert -20 in await days(db)
    assert await maintenance.keep_partitions(link, 14)
    assert await days(db) == [0, 1, 2, 3]


async def test_a_worker_tries_a_partition_that_was_in_use_again_soon(
    database_url: str, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(heartbeat, "PARTITION_BUSY", 0.1)
    outbox = Outbox()

    @outbox.task()
    async def noop() -> None: ...

    assert await add(db, -20)
    caplog.set_level(logging.DEBUG, "outbox")
    async with working(outbox, database_url):
        async with db.transaction():
            await db.execute("select from outbox.finished_job for update")
            await until(lambda: "partition_busy" in caplog.text)
            assert -20 in await days(db)

        async def dropped() -> bool:
            return -20 not in await days(db)

        await eventually(dropped)


async def drop_all_but(db: asyncpg.Connection, day: int) -> None:
    await drop_all(db)
    await add(db, day)


async def test_a_partition_begins_and_ends_at_midnight_utc_whatever_the_sessions_zone(
    db: asyncpg.Connection, engine: AsyncEngine
) -> None:
    await db.execute("set timezone = 'Asia/Kolkata'")
    assert await db.fetchval("select outbox.add_partition('2020-05-06')")
    assert not await db.fetchval("select outbox.add_partition('2020-05-06')")
    insert = (
        "insert into outbox.finished_job (id, task, state, finished_at) values (gen_random_uuid(), 't', 'failed', $1)"
    )
    for moment in (
        "2020-05-06T00:00:00Z",
        "2020-05-06T23:59:59.999999Z",
        "2020-05-05T23:59:59Z",
        "2020-05-07T00:00:00Z",
    ):
        from datetime import datetime

        await db.execute(insert, datetime.fromisoformat(moment))
    assert await db.fetchval("select count(*) from outbox.finished_job_20200506") == 2


@pytest.mark.parametrize("name", ["finished_job_archive", "finished_job_2020", "my_20200101"])
async def test_partitions_that_are_not_ours_by_name_are_left_alone(
    db: asyncpg.Connection, link: Link, name: str
) -> None:
    await db.execute(
        f"create table outbox.{name} partition of outbox.finished_job for values from ('2020-01-01') to ('2020-01-02')"
    )
    await maintenance.keep_partitions(link, 14)
    assert await db.fetchval("select to_regclass('outbox.' || $1)", name)
