"""A claim takes what is due, in order, never more than was asked for, and never what another has taken."""

import asyncio
import itertools
from uuid import uuid4

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from outbox import State, claim, sql
from outbox.connection import Link
from outbox.context import Claim
from outbox.job import MAX_LOST
from outbox.newjob import PRIORITIES
from tests import factories
from tests.factories import ago, plant, plant_many

TASKS = {"noop": 8}
LEASE = 30.0

SWITCHES = (
    "enable_hashjoin",
    "enable_mergejoin",
    "enable_nestloop",
    "enable_hashagg",
    "enable_sort",
    "enable_indexscan",
    "enable_seqscan",
    "enable_bitmapscan",
    "enable_material",
)


async def take(link: Link, **wanted: int) -> list[Claim]:
    return await claim.take(link, wanted or {"default": 10}, TASKS, factories.WORKER, LEASE)


async def test_a_claimed_job_runs_under_a_lease(engine: AsyncEngine, link: Link, db: asyncpg.Connection) -> None:
    id = await plant(engine, payload={"n": 1}, attempt=2, fence=7, max_attempts=5)
    [taken] = await take(link)

    row = await factories.read(engine, id)
    assert (row.state, row.fence, row.worker_id, row.attempt) == (State.RUNNING, 8, factories.WORKER, 2)
    assert row.started_at is not None
    assert row.lease_until is not None
    lease = await db.fetchval("select lease_until - started_at from outbox.live_job")
    assert lease.total_seconds() == pytest.approx(LEASE, abs=1)
    assert (taken.id, taken.task, taken.queue, taken.priority) == (id, "noop", "default", 1)
    assert (taken.attempt, taken.max_attempts, taken.fence) == (3, 5, 8)
    assert (taken.run_at, taken.created_at, taken.payload) == (row.run_at, row.created_at, '{"n": 1}')


async def test_the_task_says_how_many_attempts_where_the_row_does_not(engine: AsyncEngine, link: Link) -> None:
    await plant(engine)
    [taken] = await claim.take(link, {"default": 1}, {"noop": 13}, factories.WORKER, LEASE)
    assert taken.max_attempts == 13


async def test_the_fence_grows_by_one_at_every_claim(engine: AsyncEngine, link: Link, db: asyncpg.Connection) -> None:
    await plant(engine)
    fences = []
    for _ in range(5):
        [taken] = await take(link)
        fences.append(taken.fence)
        await db.execute("update outbox.live_job set state = 'pending', lease_until = null, run_at = now()")
    assert fences == [1, 2, 3, 4, 5]


async def test_the_highest_priority_and_then_the_longest_due_comes_first(engine: AsyncEngine, link: Link) -> None:
    expected = []
    for priority in PRIORITIES:
        expected += [(priority, await plant(engine, priority=priority, run_at=ago(age))) for age in (30, 20, 10)]
    taken: list[Claim] = []
    while batch := await take(link, default=5):
        assert len(batch) <= 5
        taken += batch
    assert [(each.priority, each.id) for each in taken] == expected


async def test_jobs_due_at_the_same_moment_come_in_the_order_of_their_ids(engine: AsyncEngine, link: Link) -> None:
    ids = sorted([await plant(engine, id=uuid4(), run_at=factories.EPOCH) for _ in range(6)])
    taken = [each.id for _ in ids for each in await take(link, default=1)]
    assert taken == ids


async def test_nothing_is_claimed_before_its_time(engine: AsyncEngine, link: Link, db: asyncpg.Connection) -> None:
    later = await plant(engine, "scheduled")
    await plant(engine, "retrying")
    due = await plant(engine, "pending")
    assert [each.id for each in await take(link)] == [due]
    await db.execute("update outbox.live_job set run_at = now() where id = $1", later)
    assert [each.id for each in await take(link)] == [later]


async def test_only_waiting_jobs_are_claimed(engine: AsyncEngine, link: Link) -> None:
    for kind in ("running", "expired", "cancelling", "succeeded", "failed", "cancelled"):
        await plant(engine, kind)
    assert await take(link) == []


async def test_queues_have_slots_of_their_own(engine: AsyncEngine, link: Link) -> None:
    for queue in ("a", "b", "c"):
        await plant_many(engine, 20, queue=queue)
    taken = await take(link, a=3, b=7, empty=5)
    assert {queue: sum(each.queue == queue for each in taken) for queue in "abc"} == {"a": 3, "b": 7, "c": 0}
    assert await factories.count(engine, "running") == 10


async def test_the_limit_of_a_queue_spans_its_priorities(engine: AsyncEngine, link: Link) -> None:
    for priority in PRIORITIES:
        await plant_many(engine, 3, priority=priority)
    taken = await take(link, default=7)
    assert [each.priority for each in taken] == [3, 3, 3, 2, 2, 2, 1]
    assert await factories.count(engine, "running") == 7


async def test_tasks_that_the_worker_does_not_know_are_left(engine: AsyncEngine, link: Link) -> None:
    await plant_many(engine, 30, task="of_another_release", priority=3)
    known = await plant(engine, priority=0)
    assert [each.id for each in await take(link, default=10)] == [known]
    assert await factories.count(engine, "pending") == 30


async def test_of_the_jobs_whose_next_dead_worker_is_the_last_one_at_most_is_taken(
    engine: AsyncEngine, link: Link
) -> None:
    suspects = [await plant(engine, lost=MAX_LOST - 1, run_at=ago(60 - n)) for n in range(3)]
    others = [await plant(engine, lost=MAX_LOST - 2, run_at=ago(30 - n)) for n in range(3)]

    first = await take(link, default=4)
    assert [(each.id, each.is_suspect) for each in first] == [(suspects[0], True), (others[0], False)]
    second = await claim.take(link, {"default": 4}, TASKS, factories.WORKER, LEASE, suspect=False)
    assert [(each.id, each.is_suspect) for each in second] == [(others[1], False), (others[2], False)]
    assert await claim.take(link, {"default": 4}, TASKS, factories.WORKER, LEASE, suspect=False) == []
    assert [each.id for each in await take(link, default=4)] == [suspects[1]]


async def test_rows_that_are_locked_are_passed_over_without_waiting(
    engine: AsyncEngine, link: Link, db: asyncpg.Connection
) -> None:
    first = await plant(engine, run_at=ago(30))
    second = await plant(engine, run_at=ago(20))
    async with db.transaction():
        await db.execute("select from outbox.live_job where id = $1 for update", first)
        assert [each.id for each in await take(link)] == [second]
    assert [each.id for each in await take(link)] == [first]


async def test_a_claim_does_not_wait_for_an_uncommitted_one(
    engine: AsyncEngine, link: Link, db: asyncpg.Connection
) -> None:
    await plant_many(engine, 20)
    async with db.transaction():
        rows = await db.fetch(sql.CLAIM, *factories.claim_arguments({"default": 8}))
        first = {row["id"] for row in rows} - {None}
        second = {each.id for each in await take(link, default=8)}
    assert (len(first), len(second)) == (8, 8)
    assert not first & second


async def test_claims_at_once_never_take_the_same_job(engine: AsyncEngine, link: Link, other_link: Link) -> None:
    await plant_many(engine, 3000)

    async def all_that_is_left(link: Link) -> list[Claim]:
        taken: list[Claim] = []
        misses = 0
        while misses < 3:
            batch = await take(link, default=17)
            misses = 0 if batch else misses + 1
            taken += batch
        return taken

    first, second = await asyncio.gather(all_that_is_left(link), all_that_is_left(other_link))
    assert len({each.id for each in first} | {each.id for each in second}) == len(first) + len(second) == 3000
    assert min(len(first), len(second)) > 0


@pytest.mark.parametrize("analysed", [True, False], ids=["analysed", "never-analysed"])
@pytest.mark.parametrize("plan", ["force_generic_plan", "force_custom_plan"])
async def test_no_more_than_the_limit_is_claimed_under_any_plan(
    engine: AsyncEngine, db: asyncpg.Connection, analysed: bool, plan: str
) -> None:
    await db.execute("alter table outbox.live_job set (autovacuum_enabled = off)")
    for queue, priority, age in itertools.product(("default", "mail"), (0, 1, 3), (30, 60)):
        await plant_many(engine, 10, queue=queue, priority=priority, ago=float(age))
    if analysed:
        await db.execute("analyze outbox.live_job")
    await db.execute("set jit = off")
    await db.execute(f"set plan_cache_mode = {plan}")
    right = await db.fetch(
        """
        select queue, priority, count(*) from (
            select queue, priority, row_number() over (partition by queue order by priority desc, run_at, id) as n
            from outbox.live_job
        ) ranked
        where n <= case queue when 'default' then 25 else 2 end
        group by queue, priority order by queue, priority
        """
    )
    arguments = factories.claim_arguments({"default": 25, "mail": 2})
    for choice in itertools.product(("on", "off"), repeat=len(SWITCHES)):
        settings = dict(zip(SWITCHES, choice, strict=True))
        transaction = db.transaction()
        await transaction.start()
        await db.execute(";".join(f"set local {name} = {value}" for name, value in settings.items()))
        statement = await db.prepare(f"{sql.CLAIM} -- {'-'.join(choice)}")  # a text of its own, so a plan of its own
        rows = await statement.fetch(*arguments)
        taken = await db.fetch(
            "select queue, priority, count(*) from outbox.live_job where state = 'running' group by 1, 2 order by 1, 2"
        )
        await transaction.rollback()
        assert sum(row["id"] is not None for row in rows) == 27, settings
        assert taken == right, settings
