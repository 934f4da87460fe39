"""Every statement of the worker keeps its plan, whatever the statistics say: the intended index, never the whole table.

What is explained is the generic plan under ``connection.PLANNER``, which is what a worker really runs.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from outbox import sql
from outbox.connection import PLANNER, Link
from outbox.newjob import PRIORITIES
from tests import factories
from tests.factories import plant_many

CLAIM, LEASE, KEY, NEW = "live_job_claim", "live_job_lease_until", "live_job_pkey", "live_job_new"
LIMITED = "live_job_limited"

STATEMENTS = {
    "CLAIM": {CLAIM, KEY, NEW, LIMITED},
    "TURNS": {LIMITED},
    "CLAIM_LIMITED": {LIMITED, KEY},
    "RENEW": {KEY},
    "SAY": {KEY},
    "CANCELS": {KEY},
    "FINISH": {KEY},
    "POSTPONE": {KEY},
    "ANY_EXPIRED": {LEASE},
    "GROUPS_TO_RESCUE": {LEASE},
    "RESCUE": {LEASE, KEY},
}
"""The indexes of ``live_job`` that each statement reads."""

FULL = 100_000
FROM_THE_BEGINNING = "array_fill('-infinity'::timestamptz, array[1, 4])"
NOBODY = "00000000-0000-0000-0000-000000000000"
ALL_STATISTICS_ARE_STALE = "alter table outbox.live_job set (autovacuum_enabled = off)"


async def empty(_engine: AsyncEngine, _db: asyncpg.Connection) -> None:
    pass


async def empty_analysed(_engine: AsyncEngine, db: asyncpg.Connection) -> None:
    await db.execute("vacuum analyze outbox.live_job")


async def waiting(engine: AsyncEngine, _db: asyncpg.Connection) -> None:
    await plant_many(engine, FULL)


async def waiting_analysed(engine: AsyncEngine, db: asyncpg.Connection) -> None:
    await plant_many(engine, FULL)
    await db.execute("vacuum analyze outbox.live_job")


async def running_analysed(engine: AsyncEngine, db: asyncpg.Connection) -> None:
    await plant_many(engine, FULL, state="running")
    await db.execute("vacuum analyze outbox.live_job")


async def scheduled_analysed(engine: AsyncEngine, db: asyncpg.Connection) -> None:
    await plant_many(engine, FULL, ago=-86_400.0)
    await plant_many(engine, 10)
    await db.execute("vacuum analyze outbox.live_job")


async def analysed_before_it_filled(engine: AsyncEngine, db: asyncpg.Connection) -> None:
    await plant_many(engine, 3)
    await db.execute("vacuum analyze outbox.live_job")
    await plant_many(engine, FULL)


async def analysed_before_it_emptied(engine: AsyncEngine, db: asyncpg.Connection) -> None:
    await plant_many(engine, FULL)
    await db.execute("analyze outbox.live_job")
    await db.execute("delete from outbox.live_job")


async def one_job_left_at_the_end_then_filled(engine: AsyncEngine, db: asyncpg.Connection) -> None:
    """Vacuum cannot cut the file, so it is long and nearly empty: as few rows a page as can be."""
    await plant_many(engine, FULL)
    await db.execute("delete from outbox.live_job where ctid <> (select max(ctid) from outbox.live_job)")
    await db.execute("vacuum analyze outbox.live_job")
    await plant_many(engine, FULL // 2)


TABLES = [
    empty,
    empty_analysed,
    waiting,
    waiting_analysed,
    running_analysed,
    scheduled_analysed,
    analysed_before_it_filled,
    analysed_before_it_emptied,
    one_job_left_at_the_end_then_filled,
]


@pytest.mark.parametrize("prepare", TABLES)
async def test_every_statement_reads_the_index_it_was_written_for(
    engine: AsyncEngine, link: Link, db: asyncpg.Connection, prepare: Any
) -> None:
    await db.execute(ALL_STATISTICS_ARE_STALE)
    await prepare(engine, db)
    connection = await link.connection()
    for name, indexes in STATEMENTS.items():
        plan = await generic_plan(connection, name)
        on_live = [node for node in nodes(plan) if node.get("Relation Name") == "live_job"]
        reads = [node for node in on_live if node["Node Type"] != "ModifyTable"]
        assert {node["Node Type"] for node in reads} <= {"Index Scan", "Index Only Scan"}, (name, plan)
        assert {node["Index Name"] for node in reads} == indexes, (name, plan)
        for node in reads:
            condition = node.get("Index Cond", "")
            if node["Index Name"] == CLAIM:
                bounds = ("queue = ", "priority = ", "run_at <= now()", "ROW(run_at, id) >= ROW(")
                assert all(each in condition for each in bounds), (name, condition)
            elif node["Index Name"] == KEY:
                assert re.search(r"\bid = ", condition), (name, condition)
            elif node["Index Name"] == LIMITED:
                assert "queue = " in condition, (name, condition)
            elif node["Index Name"] == NEW:
                assert "run_at <= now()" in condition, (name, condition)
                assert "run_at >= $11" in condition, (name, condition)
            else:
                assert "lease_until < now()" in condition, (name, condition)
        # Rows of the index already come in the order wanted: a sort would read and lock them all first.
        if name in ("CLAIM", "RESCUE"):
            assert not [node for node in nodes(plan) if node["Node Type"].endswith("Sort")], (name, plan)


def test_every_statement_of_the_worker_is_explained() -> None:
    of_people = {"FINISH_HERE", "KEEP_HERE", "LOCK_LIVE", "LOCK_FINISHED", "CANCEL", "REQUEST_CANCEL", "REQUEUE"}
    functions = {"ROOMS", "SPEND"}  # see test_limits
    functions |= {"ADMIT", "LOCK_GROUPS", "OPEN_GROUPS"}  # see test_groups
    of_people |= {"GROUP", "LOCK_GROUP", "OPEN_GROUP"}
    of_people |= {"ENQUEUE", "ENQUEUE_ONE", "ENQUEUE_UNIQUE", "ENQUEUE_OR_REPLACE", "RESEAL"}
    of_people |= {"COUNT_IN", "FOLLOW", "DEPEND"}
    of_people |= {"FIND_KEYS", "FIND_HELD_KEYS", "HOLD_KEYS", "HAND_KEYS_OVER"}
    of_people |= {"CANCEL_MANY", "RUN_NOW", "SET_PRIORITY", "DISCARD"}
    all_of_them = {name for name, each in vars(sql).items() if name.isupper() and isinstance(each, str)}
    all_of_them = {name for name in all_of_them if not name.startswith("_")}
    assert all_of_them == STATEMENTS.keys() | functions | of_people


async def test_the_planner_settings_hold_on_a_workers_connection(link: Link) -> None:
    connection = await link.connection()
    for name, value in PLANNER.items():
        assert await connection.fetchval("select current_setting($1)", name) == value


async def test_a_claim_never_reads_jobs_that_are_scheduled_for_later(
    engine: AsyncEngine, link: Link, db: asyncpg.Connection
) -> None:
    await db.execute(ALL_STATISTICS_ARE_STALE)
    for priority in PRIORITIES:
        await plant_many(engine, FULL // 4, ago=-86_400.0, priority=priority)
    await plant_many(engine, 5, priority=0)
    assert await pages_read(link, "['default'], [10]") < 200


async def test_a_claim_reads_no_more_than_it_takes(engine: AsyncEngine, link: Link, db: asyncpg.Connection) -> None:
    await db.execute(ALL_STATISTICS_ARE_STALE)
    for queue in ("default", "mail"):
        await plant_many(engine, FULL // 2, queue=queue)
    assert await pages_read(link, "['default'], [10]") < 400


async def test_settling_a_batch_reads_no_more_than_its_rows(
    engine: AsyncEngine, link: Link, db: asyncpg.Connection
) -> None:
    await db.execute(ALL_STATISTICS_ARE_STALE)
    await plant_many(engine, FULL, state="running")
    some = [row["id"] for row in await db.fetch("select id from outbox.live_job limit 10")]
    connection = await link.connection()
    read_before = await _tuples_read(connection)
    assert await link.fetch(sql.FINISH, some, [1] * 10, ["succeeded"] * 10, *[[None] * 10] * 4)
    assert await _tuples_read(connection) - read_before < 100


# Reading plans.


async def generic_plan(connection: asyncpg.Connection, name: str) -> dict[str, Any]:
    statement: str = getattr(sql, name)
    count = max((int(number) for number in re.findall(r"\$(\d+)", statement)), default=0)
    arguments = f"({', '.join(['null'] * count)})" if count else ""
    await connection.execute(f"prepare statement as {statement}")
    answer = await connection.fetchval(f"explain (format json, verbose off) execute statement{arguments}")
    await connection.execute("deallocate statement")
    plan: dict[str, Any] = json.loads(answer)[0]["Plan"]
    return plan


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", ()):
        yield from nodes(below)


async def pages_read(link: Link, wanted: str) -> int:
    """How many pages a claim touches; unlike its time, the same on every machine."""
    queues, slots = wanted.split("], ")
    connection = await link.connection()
    await connection.execute(f"prepare claiming as {sql.CLAIM}")
    async with connection.transaction():
        answer = await connection.fetchval(
            f"explain (analyze, buffers, format json, timing off) execute claiming("
            f"array{queues}], array{slots}, array[3, 2, 1, 0]::smallint[], "
            f"jsonb_build_object('noop', 1), '{factories.WORKER}', 30, "
            f"2, true, {FROM_THE_BEGINNING}, array_fill('{NOBODY}'::uuid, array[1, 4]), '-infinity')"
        )
    plan = json.loads(answer)[0]["Plan"]
    assert plan["Actual Rows"] > 0
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


async def _tuples_read(connection: asyncpg.Connection) -> int:
    await connection.execute("select pg_stat_force_next_flush()")
    read = await connection.fetchval(
        "select idx_tup_fetch + seq_tup_read from pg_stat_user_tables where relid = 'outbox.live_job'::regclass"
    )
    return int(read)
