"""Limits hold in all workers together, give back what the dead had, and let every key have its turn."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from outbox import Limit, Outbox, State, limit, maintenance, queue, sql, turns
from outbox import claim as claims
from outbox.connection import Link
from outbox.context import Claim
from outbox.job import MAX_LOST
from outbox.limit import Rule, Scope
from outbox.outcome import Finished, Outcome, Postponed
from outbox.turns import Turns
from tests.database.workers import drained, in_state, working
from tests.factories import WORKER, plant, read

Sessions = async_sessionmaker[AsyncSession]

outbox = Outbox()
SUCCEEDED = Finished(State.SUCCEEDED)
SLOW = 1 / 3600
"""Jobs in a second: no test sees a token come."""


@outbox.task()
async def noop(n: int = 0) -> None: ...


@outbox.task()
async def other(n: int = 0) -> None: ...


async def put(sessions: Sessions, scope: Scope, name: str, limit_: Limit, **options: Any) -> None:
    async with sessions.begin() as session:
        await limit.put(session, scope, name, limit_, **options)


async def enqueue(sessions: Sessions, count: int = 1, *, key: str = "", task: Any = noop, **options: Any) -> list[UUID]:
    async with sessions.begin() as session:
        return [task.options(limit_key=key, **options).enqueue(session, n).id for n in range(count)]


async def take(
    link: Link, wanted: int = 10, *, at: Turns | None = None, queues: Sequence[str] = ("default",)
) -> list[Claim]:
    known = {"noop": 8, "other": 8}
    return await claims.take(link, dict.fromkeys(queues, wanted), known, WORKER, 30.0, turns=at or Turns())


async def end(link: Link, claim: Claim, outcome: Outcome = SUCCEEDED) -> None:
    assert await claims.settle(link, [(claim, outcome)]) == []


# Concurrency.


@pytest.mark.parametrize("scope", ["task", "queue"])
async def test_so_many_run_at_once_in_all_workers(
    sessions: Sessions, link: Link, other_link: Link, scope: Scope
) -> None:
    await put(sessions, scope, "noop" if scope == "task" else "default", Limit(concurrency=3))
    await enqueue(sessions, 10)
    first = await take(link, 2)
    second = await take(other_link)
    assert (len(first), len(second)) == (2, 1)
    assert await take(link) == []
    await end(other_link, second[0])
    assert len(await take(link)) == 1


async def test_a_limit_per_key_holds_for_each_key(sessions: Sessions, link: Link) -> None:
    await put(sessions, "task", "noop", Limit(concurrency=2), per_key=True)
    for key in "abc":
        await enqueue(sessions, 5, key=key)
    assert len(await take(link, 20)) == 6
    assert await take(link, 20) == []


async def test_the_narrowest_of_several_limits_decides(sessions: Sessions, link: Link) -> None:
    await put(sessions, "task", "noop", Limit(concurrency=5))
    await put(sessions, "task", "noop", Limit(concurrency=2), per_key=True)
    await put(sessions, "queue", "default", Limit(concurrency=4))
    for key in "abc":
        await enqueue(sessions, 5, key=key)
    await enqueue(sessions, 5, task=other)
    assert len(await take(link, 20)) == 4


async def test_a_limit_of_a_task_spans_its_queues(sessions: Sessions, link: Link) -> None:
    await put(sessions, "task", "noop", Limit(concurrency=3))
    await enqueue(sessions, 5)
    await enqueue(sessions, 5, queue="mail")
    assert len(await take(link, 10, queues=("default", "mail"))) == 3


async def test_zero_stops_all_of_it_and_nothing_else(sessions: Sessions, link: Link) -> None:
    await put(sessions, "task", "noop", Limit(concurrency=0))
    await enqueue(sessions, 5)
    [free] = await enqueue(sessions, task=other)
    assert [claim.id for claim in await take(link)] == [free]


@pytest.mark.parametrize(
    "outcome", [SUCCEEDED, Finished(State.FAILED), Postponed(60.0), Postponed(60.0, charged=True)], ids=str
)
async def test_whatever_ends_a_run_gives_its_place_back(sessions: Sessions, link: Link, outcome: Outcome) -> None:
    await put(sessions, "task", "noop", Limit(concurrency=1))
    _, second = await enqueue(sessions, 2)
    [claim] = await take(link)
    await end(link, claim, outcome)
    assert [each.id for each in await take(link)] == [second]


async def test_the_dead_give_their_places_back_with_their_leases(
    sessions: Sessions, link: Link, db: asyncpg.Connection
) -> None:
    await put(sessions, "task", "noop", Limit(concurrency=2))
    await enqueue(sessions, 4)
    dead = await take(link)
    assert await take(link) == []
    await db.execute("update outbox.live_job set lease_until = now() - interval '1 s' where state = 'running'")
    assert await maintenance.rescue(link) == 2
    assert len(await take(link)) == len(dead) == 2


async def test_no_race_lets_more_start_than_may(engine: AsyncEngine, sessions: Sessions, database_url: str) -> None:
    """Several workers at once, each job looking how many run beside it."""
    shop = Outbox()
    running: Counter[str] = Counter()
    seen: list[tuple[int, int]] = []

    @shop.task(limit=Limit(concurrency=5), limit_per_key=Limit(concurrency=2))
    async def step(tenant: str) -> None:
        running[tenant] += 1
        seen.append((running.total(), running[tenant]))
        await asyncio.sleep(0.002)
        running[tenant] -= 1

    async with sessions.begin() as session:
        for n in range(300):
            tenant = "abcd"[n % 4]
            step.options(limit_key=tenant).enqueue(session, tenant)
    async with working(shop, database_url), working(shop, database_url), working(shop, database_url):
        await drained(engine)
    assert len(seen) == 300
    assert max(total for total, _ in seen) <= 5
    assert max(of_tenant for _, of_tenant in seen) <= 2


async def test_a_claim_never_waits_for_a_limit_that_another_worker_looks_at(
    sessions: Sessions, link: Link, other_link: Link
) -> None:
    await put(sessions, "task", "noop", Limit(concurrency=5))
    await put(sessions, "task", "other", Limit(concurrency=5))
    await enqueue(sessions)
    [free] = await enqueue(sessions, task=other)
    async with other_link.transaction():
        assert (await other_link.fetch(sql.ROOMS, ["task"], ["noop"], [False], [""]))[0]["room"] == 5
        assert [claim.id for claim in await take(link)] == [free]
    assert len(await take(link)) == 1


# Rates.


async def test_a_bucket_of_tokens(sessions: Sessions, link: Link, db: asyncpg.Connection) -> None:
    await put(sessions, "task", "noop", Limit(rate=1, per=timedelta(hours=1), burst=3))
    await enqueue(sessions, 10)
    at = Turns()
    assert len(await take(link, at=at)) == 3
    assert await take(link, at=at) == []
    assert at.again is not None
    assert 3500 < at.again <= 3600
    await db.execute("update outbox.job_bucket set full_at = full_at - interval '2 hours'")  # two hours later
    assert len(await take(link, at=at)) == 2
    await db.execute("update outbox.job_bucket set full_at = full_at - interval '1 year'")
    assert len(await take(link, at=at)) == 3  # never more than the burst


async def test_tokens_are_taken_by_those_that_start_and_no_others(
    sessions: Sessions, link: Link, db: asyncpg.Connection
) -> None:
    await put(sessions, "task", "noop", Limit(rate=SLOW, burst=5))
    await enqueue(sessions, 2)
    assert len(await take(link)) == 2
    await enqueue(sessions, 10)
    assert len(await take(link)) == 3


@pytest.mark.parametrize("scope", ["task", "queue"])
async def test_a_rate_per_key(sessions: Sessions, link: Link, scope: Scope) -> None:
    await put(sessions, scope, "noop" if scope == "task" else "default", Limit(rate=SLOW, burst=2), per_key=True)
    for key in ("a", "b", ""):
        await enqueue(sessions, 5, key=key)
    assert len(await take(link, 20)) == 6
    assert await take(link, 20) == []


async def test_a_rolled_back_claim_takes_no_tokens(
    sessions: Sessions, link: Link, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(sessions, "task", "noop", Limit(rate=SLOW, burst=2))
    await enqueue(sessions, 5)

    async def break_off(*_: object) -> None:
        raise ConnectionResetError

    with monkeypatch.context() as patch:
        patch.setattr(turns, "_spend", break_off)
        with pytest.raises(ConnectionResetError):
            await take(link)
    assert len(await take(link)) == 2


async def test_a_worker_starts_each_job_as_soon_as_its_token_is_there(
    engine: AsyncEngine, sessions: Sessions, database_url: str
) -> None:
    shop = Outbox()

    @shop.task(limit=Limit(rate=50, burst=2))
    async def step() -> None: ...

    async with sessions.begin() as session:
        ids = [step.enqueue(session).id for _ in range(25)]
    async with working(shop, database_url, poll_min=30.0, poll_max=30.0):  # no poll would be in time
        await drained(engine)
    jobs = [await read(engine, id) for id in ids]
    started = sorted(job.started_at for job in jobs if job.started_at is not None)
    for n, late in enumerate(started):
        for m, early in enumerate(started[2:n], start=2):
            # Between any two starts there were no more than the rate and the burst allow.
            assert (late - early).total_seconds() >= (n - m + 1 - 2 - 0.01) / 50 - 0.005


async def test_full_buckets_are_thrown_away(sessions: Sessions, link: Link, db: asyncpg.Connection) -> None:
    await put(sessions, "task", "noop", Limit(rate=1, per=3600, burst=2), per_key=True)
    for key in "ab":
        await enqueue(sessions, key=key)
    await take(link)
    await db.execute("update outbox.job_bucket set full_at = now() - interval '1 hour' where key = 'a'")
    await maintenance.keep_partitions(link, 14)
    assert [row["key"] for row in await db.fetch("select key from outbox.job_bucket")] == ["b"]


# Fairness.


async def test_a_tenant_with_very_many_jobs_does_not_starve_one_with_few(
    engine: AsyncEngine, sessions: Sessions, link: Link, db: asyncpg.Connection
) -> None:
    await put(sessions, "task", "noop", Limit(concurrency=1000))
    await db.execute("alter table outbox.live_job set (autovacuum_enabled = off)")
    await db.execute(
        """
        insert into outbox.live_job (task, limit_key, limited, run_at)
        select 'noop', 'big', true, now() - interval '1 hour' from generate_series(1, 100000)
        """
    )
    small = set(await enqueue(sessions, 10, key="small"))
    at, taken = Turns(), []
    for _ in range(5):
        taken += await take(link, 4, at=at)
    assert sum(claim.id in small for claim in taken) == 10
    before = await rows_read(link)
    assert len(await take(link, 4, at=at)) == 4
    assert await rows_read(link) - before < 100


async def rows_read(link: Link) -> int:
    connection = await link.connection()
    await connection.execute("select pg_stat_force_next_flush()")
    read = await connection.fetchval(
        "select idx_tup_fetch + seq_tup_read from pg_stat_user_tables where relid = 'outbox.live_job'::regclass"
    )
    return int(read)


async def test_one_slot_goes_around(sessions: Sessions, link: Link) -> None:
    await put(sessions, "task", "noop", Limit(concurrency=100))
    keys: dict[UUID, str] = {}
    for key in "abc":
        keys |= dict.fromkeys(await enqueue(sessions, 3, key=key), key)
    at = Turns()
    assert [keys[(await take(link, 1, at=at))[0].id] for _ in range(9)] == list("abcabcabc")


async def test_keys_that_a_claim_does_not_come_to_are_next(
    sessions: Sessions, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "CIRCLE", 5)
    await put(sessions, "task", "noop", Limit(concurrency=1), per_key=True)
    keys = [f"{n:02}" for n in range(23)]
    for key in keys:
        await enqueue(sessions, 2, key=key)
    at = Turns()
    taken = [len(await take(link, 20, at=at)) for _ in range(5)]
    assert taken == [5, 5, 5, 5, 3]  # the last looks at two that have had theirs
    assert [len(await take(link, 20, at=at)) for _ in range(5)] == [0] * 5


async def test_keys_of_tasks_that_the_worker_does_not_know_are_passed_over(
    sessions: Sessions, link: Link, monkeypatch: pytest.MonkeyPatch, db: asyncpg.Connection
) -> None:
    monkeypatch.setattr(turns, "CIRCLE", 5)
    await db.execute(
        """
        insert into outbox.live_job (task, limit_key, limited) select 'a stranger', n::text, true
        from generate_series(1, 12) n
        """
    )
    await put(sessions, "task", "noop", Limit(concurrency=10))
    [id] = await enqueue(sessions)
    at = Turns()
    taken = [claim.id for _ in range(4) for claim in await take(link, at=at)]
    assert taken == [id]


async def test_priorities_order_the_jobs_of_a_turn(sessions: Sessions, link: Link) -> None:
    await put(sessions, "task", "noop", Limit(concurrency=10))
    [low] = await enqueue(sessions, priority=0)
    [high] = await enqueue(sessions, priority=3)
    at = Turns()
    assert [(await take(link, 1, at=at))[0].id for _ in range(2)] == [high, low]


# With everything else.


async def test_nothing_of_a_paused_queue_and_nothing_before_its_time(sessions: Sessions, link: Link) -> None:
    await put(sessions, "task", "noop", Limit(concurrency=10))
    await enqueue(sessions, delay=3600)
    await enqueue(sessions, queue="mail")
    async with sessions.begin() as session:
        await queue.pause(session, "mail")
    assert await take(link, queues=("default", "mail")) == []
    async with sessions.begin() as session:
        await queue.resume(session, "mail")
    assert len(await take(link, queues=("default", "mail"))) == 1


async def test_a_group_with_a_limit_keeps_its_order(sessions: Sessions, link: Link) -> None:
    await put(sessions, "task", "noop", Limit(concurrency=10))
    ids = await enqueue(sessions, 3, group="g")
    at = Turns()
    for id in ids:
        while not (taken := await take(link, at=at)):
            pass
        assert [claim.id for claim in taken] == [id]
        await end(link, taken[0])


async def test_one_suspect_at_a_time(engine: AsyncEngine, sessions: Sessions, link: Link) -> None:
    await put(sessions, "task", "noop", Limit(concurrency=10))
    for _ in range(3):
        await plant(engine, limited=True, lost=MAX_LOST - 1)
    taken = await take(link)
    assert [claim.is_suspect for claim in taken] == [True]
    rest = await claims.take(link, {"default": 5}, {"noop": 8}, WORKER, 30.0, suspect=False, turns=Turns())
    assert rest == []


async def test_a_claim_brings_no_more_than_there_are_free_slots(sessions: Sessions, link: Link) -> None:
    await put(sessions, "task", "noop", Limit(concurrency=10))
    await enqueue(sessions, 10)
    known = {"noop": 8}
    taken = await claims.take(link, {"default": 10}, known, WORKER, 30.0, free={"default": 2}, turns=Turns())
    assert len(taken) == 2


async def test_jobs_without_limits_do_not_keep_limited_ones_waiting_for_ever(
    engine: AsyncEngine, sessions: Sessions, link: Link
) -> None:
    await put(sessions, "task", "noop", Limit(concurrency=10))
    limited = set(await enqueue(sessions, 2))
    await enqueue(sessions, 50, task=other)
    at = Turns()

    async def full() -> set[UUID]:
        known = {"noop": 8, "other": 8}
        taken = await claims.take(link, {"default": 5}, known, WORKER, 30.0, free={"default": 0}, turns=at)
        assert len(taken) == 5
        return {claim.id for claim in taken}

    assert not await full() & limited
    assert limited <= await full()
    assert not await full() & limited


async def test_a_limited_job_goes_through_its_whole_life(
    engine: AsyncEngine, sessions: Sessions, database_url: str
) -> None:
    shop = Outbox()

    @shop.task(limit=Limit(concurrency=1), retry=3)
    async def step(fails: bool) -> None:
        if fails:
            raise ValueError

    async with sessions.begin() as session:
        good, bad = step.enqueue(session, fails=False), step.options(max_attempts=1).enqueue(session, fails=True)
    async with working(shop, database_url):
        await in_state(engine, good.id, State.SUCCEEDED)
        await in_state(engine, bad.id, State.FAILED)
    job = await read(engine, good.id)
    assert (job.limited, job.limit_key) == (True, "")


# Who says what.


async def test_a_new_limit_holds_for_what_waits_and_runs_already(
    sessions: Sessions, link: Link, engine: AsyncEngine
) -> None:
    await enqueue(sessions, 5)
    assert len(await take(link, 2)) == 2
    await put(sessions, "task", "noop", Limit(concurrency=3))
    assert len(await take(link)) == 1
    assert await take(link) == []


async def test_without_its_limit_a_job_is_claimed_as_any_other(sessions: Sessions, link: Link) -> None:
    await put(sessions, "task", "noop", Limit(concurrency=0))
    await enqueue(sessions, 5)
    assert await take(link) == []
    async with sessions.begin() as session:
        await limit.remove(session, "task", "noop")
    assert len(await take(link)) == 5


async def test_code_declares_and_a_person_overrules(engine: AsyncEngine, sessions: Sessions, link: Link) -> None:
    def declared(concurrency: int | None) -> Outbox:
        shop = Outbox()
        given = None if concurrency is None else Limit(concurrency=concurrency)
        shop.task(name="noop", limit=given)(noop.handler)
        return shop

    async def known() -> list[tuple[int | None, bool]]:
        async with sessions() as session:
            return [(rule.limit.concurrency, rule.declared) for rule in await limit.rules(session)]

    async def start(shop: Outbox) -> list[tuple[int | None, bool]]:
        await limit.declare(link, shop.spoken_for, shop.limits)
        return await known()

    assert await start(declared(3)) == [(3, True)]
    assert await start(declared(4)) == [(4, True)]
    assert await start(Outbox()) == [(4, True)]  # that code does not speak for the task
    await put(sessions, "task", "noop", Limit(concurrency=1))
    assert await start(declared(5)) == [(1, False)]
    assert await start(declared(None)) == [(1, False)]
    async with sessions.begin() as session:
        await limit.remove(session, "task", "noop")
    assert await start(declared(5)) == [(5, True)]
    assert await start(declared(None)) == []


async def test_the_limits_can_be_read(sessions: Sessions) -> None:
    await put(sessions, "queue", "mail", Limit(rate=60, per=60, burst=5), per_key=True)
    async with sessions() as session:
        assert await limit.rules(session) == [
            Rule("queue", "mail", per_key=True, limit=Limit(rate=1.0, burst=5), declared=False)
        ]


@pytest.mark.parametrize(("scope", "name"), [("host", "x"), ("task", ""), ("queue", "a\x00")])
async def test_a_limit_for_nothing_is_refused(sessions: Sessions, scope: Any, name: str) -> None:
    with pytest.raises(ValueError, match=r"scope|name"):
        await put(sessions, scope, name, Limit(concurrency=1))


async def test_what_limits_cost_and_who_pays_for_it(sessions: Sessions, link: Link, sent: list[str]) -> None:
    await enqueue(sessions)
    await take(link)
    assert sent == [sql.CLAIM]
    await put(sessions, "task", "noop", Limit(concurrency=5, rate=100))
    await enqueue(sessions)
    sent.clear()
    await take(link)
    assert sent == [sql.CLAIM, sql.TURNS, sql.ROOMS, sql.CLAIM_LIMITED, sql.SPEND]
