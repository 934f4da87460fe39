"""``select outbox.enqueue(...)``: for triggers, psql and other languages, by the same rules as the Python door."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from outbox import State, claim
from outbox.connection import Link
from tests import factories


async def test_a_job_with_nothing_but_a_name(engine: AsyncEngine, db: asyncpg.Connection) -> None:
    id = await db.fetchval("select outbox.enqueue('noop')")
    job = await factories.read(engine, id)
    assert (job.id.version, job.task, job.queue, job.state) == (7, "noop", "default", State.PENDING)
    assert (job.payload, job.priority, job.max_attempts, job.tags, job.attempt, job.fence) == ({}, 1, None, [], 0, 0)


async def test_everything_that_can_be_said(engine: AsyncEngine, db: asyncpg.Connection) -> None:
    wanted = UUID("01890000-0000-7000-8000-000000000000")
    moment = datetime(2031, 1, 2, tzinfo=UTC)
    id = await db.fetchval(
        """
        select outbox.enqueue('send', '{"to": "é"}', queue => 'mail', run_at => $1, priority => 3, max_attempts => 7,
                              tags => '["a", "b"]', id => $2)
        """,
        moment,
        wanted,
    )
    job = await factories.read(engine, id)
    assert (job.id, job.task, job.queue, job.run_at, job.priority, job.max_attempts, job.tags, job.payload) == (
        wanted, "send", "mail", moment, 3, 7, ["a", "b"], {"to": "é"},
    )  # fmt: skip


async def test_a_delay_counts_from_now(engine: AsyncEngine, db: asyncpg.Connection) -> None:
    id = await db.fetchval("select outbox.enqueue('noop', delay => '1 hour')")
    job = await factories.read(engine, id)
    assert (job.run_at - job.created_at).total_seconds() == pytest.approx(3600, abs=60)


async def test_it_is_part_of_the_transaction(engine: AsyncEngine, db: asyncpg.Connection) -> None:
    transaction = db.transaction()
    await transaction.start()
    await db.fetchval("select outbox.enqueue('noop')")
    assert await factories.count(engine) == 0
    await transaction.rollback()
    assert await factories.count(engine) == 0


async def test_a_trigger_enqueues_with_the_row_that_fired_it(
    engine: AsyncEngine, db: asyncpg.Connection, link: Link
) -> None:
    await db.execute(
        """
        create table parcel (id integer primary key);
        create function ship() returns trigger language plpgsql as $$
        begin
            perform outbox.enqueue('noop', jsonb_build_object('parcel', new.id), tags => '["parcel"]');
            return new;
        end $$;
        create trigger ship after insert on parcel for each row execute function ship();
        insert into parcel values (1), (2);
        """
    )
    with pytest.raises(asyncpg.UniqueViolationError):
        await db.execute("insert into parcel values (3), (1)")
    taken = await claim.take(link, {"default": 10}, {"noop": 8}, factories.WORKER, 30)
    assert sorted(each.payload for each in taken) == ['{"parcel": 1}', '{"parcel": 2}']
    assert await factories.count(engine) == 2


def levels(depth: int) -> str:
    """An object that is ``depth`` levels deep in all."""
    return '{"a": ' + "[" * (depth - 1) + "]" * (depth - 1) + "}"


@pytest.mark.parametrize(
    "payload",
    ["{}", levels(64), f'{{"a": {2**63 - 1}, "b": {-(2**63)}, "c": 1.5}}', '{"a": "' + "x" * 999_990 + '"}'],
    ids=["empty", "64-levels", "64-bit", "a-megabyte"],
)
async def test_the_limits_themselves_are_allowed(db: asyncpg.Connection, payload: str) -> None:
    assert await db.fetchval("select outbox.enqueue('noop', $1::text::jsonb)", payload)


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "payload-array": ("payload must be a JSON object", {"payload": "[1]"}),
    "payload-text": ("payload must be a JSON object", {"payload": '"x"'}),
    "payload-json-null": ("payload must be a JSON object", {"payload": "null"}),
    "payload-null": ("payload must be a JSON object", {"payload": None}),
    "payload-too-long": ("limit 1000000", {"payload": '{"a": "' + "x" * 1_000_000 + '"}'}),
    "payload-too-deep": ("nested deeper than 64", {"payload": levels(65)}),
    "payload-much-too-deep": ("nested deeper than 64", {"payload": levels(1000)}),
    "payload-deep-in-objects": ("nested deeper than 64", {"payload": '{"a":' * 65 + "1" + "}" * 65}),
    "payload-number": ("beyond 64 bit", {"payload": f'{{"a": {2**63}}}'}),
    "payload-small-number": ("beyond 64 bit", {"payload": f'{{"a": [{-(2**63) - 1}]}}'}),
    "payload-exponent": ("beyond 64 bit", {"payload": '{"a": {"b": 1e400}}'}),
    "task-null": ("null value", {"task": None}),
    "task-empty": ("live_job_names", {"task": ""}),
    "task-long": ("live_job_names", {"task": "x" * 201}),
    "queue-null": ("null value", {"queue": None}),
    "queue-empty": ("live_job_names", {"queue": ""}),
    "queue-long": ("live_job_names", {"queue": "x" * 201}),
    "priority-high": ("live_job_priority", {"priority": 4}),
    "priority-low": ("live_job_priority", {"priority": -1}),
    "priority-huge": ("out of range", {"priority": 2**31 - 1}),
    "attempts-none": ("live_job_counts", {"max_attempts": 0}),
    "attempts-many": ("out of range", {"max_attempts": 32_768}),
    "tags-object": ("tags", {"tags": "{}"}),
    "tags-text": ("tags", {"tags": '"vip"'}),
    "tags-numbers": ("tags", {"tags": "[1]"}),
    "tags-empty-text": ("tags", {"tags": '[""]'}),
    "delay-negative": ("delay", {"delay": "-1 hour"}),
    "delay-and-run-at": ("delay or run_at", {"delay": "1 hour", "run_at": "2031-01-01"}),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_what_the_python_door_refuses_is_refused_here(
    engine: AsyncEngine, db: asyncpg.Connection, case: str
) -> None:
    said, changes = REFUSED[case]
    values = {"task": "noop", "payload": "{}", "queue": "default", "delay": None, "run_at": None, "priority": 1}
    values |= {"max_attempts": None, "tags": None} | changes
    with pytest.raises(asyncpg.PostgresError, match=said):
        await db.fetchval(
            """
            select outbox.enqueue(($1::text)::text, ($2::text)::jsonb, ($3::text)::text, ($4::text)::interval,
                                  ($5::text)::timestamptz, $6::integer, $7::integer, ($8::text)::jsonb)
            """,
            *(
                values[name]
                for name in ("task", "payload", "queue", "delay", "run_at", "priority", "max_attempts", "tags")
            ),
        )
    assert await factories.count(engine) == 0


async def test_the_same_id_twice_is_refused(db: asyncpg.Connection) -> None:
    id = await db.fetchval("select outbox.enqueue('noop')")
    with pytest.raises(asyncpg.UniqueViolationError):
        await db.fetchval("select outbox.enqueue('noop', id => $1)", id)


async def test_ids_of_the_database_are_in_the_order_of_time_and_never_the_same(db: asyncpg.Connection) -> None:
    ids = [row[0] for row in await db.fetch("select outbox.uuid7() from generate_series(1, 2000)")]
    assert len(set(ids)) == 2000
    assert {id.version for id in ids} == {7}
    assert {id.variant for id in ids} == {"specified in RFC 4122"}
    times = [id.int >> 80 for id in ids]
    assert times == sorted(times)
    now = await db.fetchval("select (extract(epoch from clock_timestamp()) * 1000)::bigint")
    assert 0 <= now - times[-1] < 600_000


async def test_a_key_a_group_and_a_turn(engine: AsyncEngine, db: asyncpg.Connection) -> None:
    say = """
        select outbox.enqueue('send', key => 'k', on_conflict => $1, "group" => 'g', passable => true,
                              limit_key => 't', version => 3)
    """
    first = await db.fetchval(say, "keep")
    job = await factories.read(engine, first)
    assert (job.key, job.group_key, job.passable, job.blocked) == ("k", "g", True, "new")
    assert (job.limit_key, job.limited, job.version) == ("t", False, 3)
    assert await db.fetchval(say, "keep") == first
    with pytest.raises(asyncpg.PostgresError, match="already") as refused:
        await db.execute(say.replace("$1", "'reject'"))
    assert (refused.value.sqlstate, refused.value.detail) == ("OB409", str(first))
    with pytest.raises(asyncpg.InvalidParameterValueError, match="keep or reject"):
        await db.execute(say.replace("$1", "'replace'"))
    assert await factories.count(engine) == 1


async def test_an_id_that_is_taken_is_an_error_and_no_other_job(db: asyncpg.Connection) -> None:
    id = await db.fetchval("select outbox.enqueue('send')")
    with pytest.raises(asyncpg.UniqueViolationError):
        await db.execute("select outbox.enqueue('send', id => $1)", id)


async def test_a_limit_holds_for_its_jobs_too(engine: AsyncEngine, db: asyncpg.Connection) -> None:
    await db.execute(
        "insert into outbox.job_limit (scope, name, per_key, concurrency) values ('queue', 'mail', false, 1)"
    )
    id = await db.fetchval("select outbox.enqueue('send', queue => 'mail')")
    assert (await factories.read(engine, id)).limited
