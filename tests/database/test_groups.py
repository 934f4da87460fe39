"""Jobs of a group run one at a time and in the order in which they were enqueued, whatever happens to any of them."""

import asyncio
import random
from collections import defaultdict
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from outbox import INJECTED, Job, JobContext, NewJob, Outbox, Retry, Snooze, State, control, maintenance, sql, status
from outbox import claim as claims
from outbox.connection import Link
from outbox.context import Claim
from outbox.errors import IllegalTransition
from outbox.job import MAX_LOST
from outbox.outcome import RELEASED, Finished, Outcome, Postponed
from tests import factories
from tests.database.workers import drained, in_state, working
from tests.factories import WORKER, read
from tests.waiting import eventually, until

Sessions = async_sessionmaker[AsyncSession]

outbox = Outbox()
SUCCEEDED = Finished(State.SUCCEEDED)


@outbox.task()
async def noop(n: int = 0) -> None: ...


async def enqueue(sessions: Sessions, group: str = "g", count: int = 1, **options: Any) -> list[UUID]:
    async with sessions.begin() as session:
        return [noop.options(group=group, **options).enqueue(session, n).id for n in range(count)]


async def take(link: Link, wanted: int = 10) -> list[Claim]:
    return await claims.take(link, {"default": wanted}, {"noop": 8}, WORKER, 30.0)


async def end(link: Link, claim: Claim, outcome: Outcome = SUCCEEDED) -> None:
    assert await claims.settle(link, [(claim, outcome)]) == []


async def blocked_by(engine: AsyncEngine, id: UUID) -> UUID | None:
    job = await read(engine, id)
    async with engine.connect() as connection:
        return await status.blocker(connection, job)


# Order.


async def test_one_at_a_time_in_the_order_of_enqueuing(engine: AsyncEngine, sessions: Sessions, link: Link) -> None:
    ids = await enqueue(sessions, count=3)
    for n, id in enumerate(ids):
        [claim] = await take(link)
        assert (claim.id, claim.group) == (id, "g")
        assert await take(link) == []
        assert [await blocked_by(engine, each) for each in ids[n + 1 :]] == [id] * (2 - n)
        await end(link, claim)
    assert await take(link) == []


async def test_groups_and_jobs_without_one_do_not_wait_for_each_other(sessions: Sessions, link: Link) -> None:
    first = [(await enqueue(sessions, group=name, count=2))[0] for name in ("a", "b")]
    async with sessions.begin() as session:
        alone = [noop.enqueue(session).id for _ in range(3)]
    assert {claim.id for claim in await take(link)} == {*first, *alone}


async def test_a_claim_brings_no_more_than_was_wanted(sessions: Sessions, link: Link) -> None:
    async with sessions.begin() as session:
        for n in range(3):
            noop.enqueue(session, n)
            noop.options(group=str(n)).enqueue(session, n)
    for wanted in (2, 2, 2, 0):
        assert len(await take(link, 2)) == wanted


async def test_jobs_of_a_priority_keep_to_the_order_of_their_group(sessions: Sessions, link: Link) -> None:
    [low] = await enqueue(sessions, priority=0)
    await enqueue(sessions, priority=3)
    [claim] = await take(link)
    assert claim.id == low


async def test_a_batch_of_groups_is_settled_together(engine: AsyncEngine, sessions: Sessions, link: Link) -> None:
    ids = {name: await enqueue(sessions, group=name, count=2) for name in "abcde"}
    taken = await take(link)
    outcomes: list[Outcome] = [SUCCEEDED, Finished(State.FAILED), Finished(State.CANCELLED), RELEASED, Postponed(60.0)]
    assert await claims.settle(link, list(zip(taken, outcomes, strict=True))) == []
    after = {claim.id for claim in await take(link)}
    by_group = {claim.group: outcome for claim, outcome in zip(taken, outcomes, strict=True)}
    expected = set()
    for name, (first, second) in ids.items():
        outcome = by_group[name]
        if isinstance(outcome, Finished):
            expected.add(second)
        elif outcome is RELEASED:
            expected.add(first)
    assert after == expected


async def test_a_job_that_commits_late_takes_the_place_of_its_id(
    engine: AsyncEngine, sessions: Sessions, link: Link
) -> None:
    async with sessions() as late:
        first = noop.options(group="g").enqueue(late)
        await late.flush()
        second, third = await enqueue(sessions, count=2)
        [claim] = await take(link)
        assert claim.id == second  # nobody waits for a transaction that may never commit
        await late.commit()
    assert await take(link) == []
    await end(link, claim)
    [claim] = await take(link)
    assert claim.id == first.id
    await end(link, claim)
    [claim] = await take(link)
    assert claim.id == third


# What the head does.


@pytest.mark.parametrize("passable", [False, True])
@pytest.mark.parametrize("outcome", [Postponed(60.0), Postponed(60.0, charged=True)], ids=["snooze", "retry"])
async def test_a_head_that_waits_blocks_unless_it_may_be_passed(
    engine: AsyncEngine, sessions: Sessions, link: Link, db: asyncpg.Connection, outcome: Postponed, passable: bool
) -> None:
    first, second, third = await enqueue(sessions, count=3, passable=passable)
    [claim] = await take(link)
    await end(link, claim, outcome)
    taken = await take(link)
    assert [each.id for each in taken] == ([second] if passable else [])
    await db.execute("update outbox.live_job set run_at = now() where id = $1", first)
    if passable:
        assert await take(link) == []  # one at a time, still
        await end(link, taken[0])
    [claim] = await take(link)
    assert claim.id == first  # its place is where it was
    await end(link, claim)
    [claim] = await take(link)
    assert claim.id == (third if passable else second)


@pytest.mark.parametrize("passable", [False, True])
async def test_a_head_that_is_scheduled_blocks_unless_it_may_be_passed(
    engine: AsyncEngine, sessions: Sessions, link: Link, passable: bool
) -> None:
    [later] = await enqueue(sessions, delay=3600, passable=passable)
    assert await take(link) == []
    [now] = await enqueue(sessions)
    assert [claim.id for claim in await take(link)] == ([now] if passable else [])
    assert await blocked_by(engine, now) == (None if passable else later)


@pytest.mark.parametrize("state", [State.SUCCEEDED, State.FAILED, State.CANCELLED])
async def test_a_head_that_has_ended_lets_the_next_one_go(
    engine: AsyncEngine, sessions: Sessions, link: Link, state: State
) -> None:
    _, second = await enqueue(sessions, count=2)
    [claim] = await take(link)
    await end(link, claim, Finished(state))
    assert [each.id for each in await take(link)] == [second]


async def test_a_cancelled_head_lets_the_next_one_go(engine: AsyncEngine, sessions: Sessions, link: Link) -> None:
    first, second, third = await enqueue(sessions, count=3, delay=0.0)
    [claim] = await take(link)
    await end(link, claim, Postponed(60.0))
    async with sessions.begin() as session:
        assert (await control.cancel(session, second)).state is State.CANCELLED  # one that is blocked, too
    async with sessions.begin() as session:
        assert (await control.cancel(session, first)).state is State.CANCELLED
    assert [each.id for each in await take(link)] == [third]


async def test_a_requeued_job_goes_before_those_that_came_after_it(
    engine: AsyncEngine, sessions: Sessions, link: Link
) -> None:
    first, second, third = await enqueue(sessions, count=3)
    [claim] = await take(link)
    await end(link, claim, Finished(State.FAILED))
    [running] = await take(link)
    async with sessions.begin() as session:
        await control.requeue(session, first)
    assert await take(link) == []
    await end(link, running)
    assert running.id == second
    [claim] = await take(link)
    assert claim.id == first
    await end(link, claim)
    assert [each.id for each in await take(link)] == [third]


@pytest.mark.parametrize("lost", [0, MAX_LOST - 1])
async def test_a_dead_workers_job_runs_again_before_the_next_unless_it_is_poison(
    engine: AsyncEngine, sessions: Sessions, link: Link, db: asyncpg.Connection, lost: int
) -> None:
    first, second = await enqueue(sessions, count=2)
    assert [claim.id for claim in await take(link)] == [first]
    await db.execute(
        "update outbox.live_job set lease_until = now() - interval '1 s', lost = $2 where id = $1", first, lost
    )
    assert await maintenance.rescue(link) == 1
    assert [claim.id for claim in await take(link)] == [first if lost == 0 else second]


async def test_a_rescue_leaves_the_poison_of_a_group_that_somebody_holds_for_later(
    engine: AsyncEngine, sessions: Sessions, link: Link, db: asyncpg.Connection
) -> None:
    first, second = await enqueue(sessions, count=2)
    await take(link)
    await db.execute("update outbox.live_job set lease_until = now() - interval '1 s', lost = 2 where id = $1", first)
    async with db.transaction():
        await db.execute(sql.LOCK_GROUPS, ["g"])
        assert await maintenance.rescue(link) == 0  # and it does not wait
    assert await maintenance.rescue(link) == 1
    assert [claim.id for claim in await take(link)] == [second]


# Races.


async def test_a_claim_does_not_wait_for_a_group_that_somebody_holds(
    sessions: Sessions, link: Link, db: asyncpg.Connection
) -> None:
    [held] = await enqueue(sessions, group="held")
    [free] = await enqueue(sessions, group="free")
    async with db.transaction():
        await db.execute(sql.LOCK_GROUPS, ["held"])
        assert [claim.id for claim in await take(link)] == [free]
    assert [claim.id for claim in await take(link)] == [held]


async def test_what_comes_while_the_last_one_is_settled_is_not_forgotten(
    engine: AsyncEngine, sessions: Sessions, link: Link, other_link: Link
) -> None:
    """Two workers and an enqueuer, in every order that a round trip can be torn into."""
    for _ in range(50):
        await enqueue(sessions)
        taken = await take(link)
        await asyncio.gather(*(end(link, claim) for claim in taken), enqueue(sessions), take(other_link, 0))
        await asyncio.gather(settle_all(link), settle_all(other_link), enqueue(sessions))
    while await settle_all(link):
        pass
    assert await factories.count(engine, "pending", "running") == 0


async def settle_all(link: Link) -> int:
    taken = await take(link)
    for claim in taken:
        await asyncio.sleep(random.choice((0, 0.001)))
        await end(link, claim)
    return len(taken)


async def test_several_workers_and_enqueuers_keep_the_order_of_each_group(
    engine: AsyncEngine, sessions: Sessions, database_url: str
) -> None:
    outbox = Outbox()
    running: set[str] = set()
    ran: dict[str, list[UUID]] = defaultdict(list)
    overlaps: list[str] = []

    @outbox.task(retry=Retry(max_attempts=5, base=0.01, cap=0.01))
    async def step(group: str, fails: bool, *, ctx: JobContext = INJECTED) -> Snooze | None:
        if group in running:
            overlaps.append(group)
        running.add(group)
        try:
            await asyncio.sleep(0.001)
            if fails and ctx.fence == 1:
                raise ValueError
            if fails and ctx.fence == 2:
                return Snooze(0.01)
            ran[group].append(ctx.id)
            return None
        finally:
            running.discard(group)

    order: dict[str, list[UUID]] = defaultdict(list)

    async def enqueue_for(group: str) -> None:
        for n in range(15):
            async with sessions.begin() as session:
                jobs: list[NewJob] = [
                    step.options(group=group).enqueue(session, group, fails=n % 4 == 0) for _ in range(2)
                ]
            order[group] += [job.id for job in jobs]

    async with working(outbox, database_url), working(outbox, database_url), working(outbox, database_url):
        await asyncio.gather(*(enqueue_for(f"g{n}") for n in range(8)))
        await drained(engine)
    assert overlaps == []
    assert ran == order


async def test_a_handler_that_settles_its_job_itself_opens_the_next(
    engine: AsyncEngine, sessions: Sessions, database_url: str
) -> None:
    outbox = Outbox(sessions=sessions)
    ran: list[UUID] = []

    @outbox.task()
    async def step(*, session: AsyncSession = INJECTED, ctx: JobContext = INJECTED) -> None:
        await ctx.keep_in(session, {"at": 1})
        ran.append(ctx.id)

    async with sessions.begin() as session:
        ids = [step.options(group="g").enqueue(session).id for _ in range(20)]
    async with working(outbox, database_url, poll_min=30.0, poll_max=30.0):  # by wake-ups alone
        await drained(engine)
    assert ran == ids


async def test_the_next_is_not_left_to_the_next_poll(
    engine: AsyncEngine, sessions: Sessions, database_url: str
) -> None:
    ids = await enqueue(sessions, count=20)
    async with working(outbox, database_url, poll_min=30.0, poll_max=30.0):
        await drained(engine)
    jobs = [await read(engine, id) for id in ids]
    started = [job.started_at for job in jobs if job.started_at is not None]
    assert len(started) == 20
    assert started == sorted(started)


async def test_a_stop_hands_the_head_back(engine: AsyncEngine, sessions: Sessions, database_url: str) -> None:
    outbox = Outbox()
    started: list[UUID] = []

    @outbox.task()
    async def step(*, ctx: JobContext = INJECTED) -> None:
        started.append(ctx.id)
        await asyncio.sleep(0 if len(started) > 1 else 3600)

    async with sessions.begin() as session:
        first, second = (step.options(group="g").enqueue(session).id for _ in range(2))
    async with working(outbox, database_url, grace=0.0):
        await until(lambda: started)
    async with working(outbox, database_url):
        await in_state(engine, second, State.SUCCEEDED)
    assert started == [first, first, second]


async def test_a_handler_that_ends_and_a_person_who_cancels_do_not_wait_for_each_other(
    sessions: Sessions, link: Link, db: asyncpg.Connection
) -> None:
    [id] = await enqueue(sessions)
    [claim] = await take(link)

    async def cancel() -> None:
        async with sessions.begin() as session:
            await control.cancel(session, id)

    async def somebody_waits() -> bool:
        return bool(await db.fetchval("select exists (select from pg_locks where not granted)"))

    async with sessions.begin() as session:
        await JobContext(claim).keep_in(session, {"at": 1})
        cancelling = asyncio.create_task(cancel())
        await eventually(somebody_waits)
        finish = "select outbox.finish(:id, :fence, null, null, null, null)"
        assert (await session.execute(text(finish), {"id": id, "fence": claim.fence})).scalar()
    with pytest.raises(IllegalTransition):
        await cancelling


async def test_what_was_claimed_is_not_lost_with_the_connection_that_was_to_bring_more(
    sessions: Sessions, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sessions.begin() as session:
        plain = noop.enqueue(session)
    await enqueue(sessions)

    async def break_off(*_: object) -> bool:
        raise ConnectionResetError

    monkeypatch.setattr(claims, "_admit", break_off)
    assert [claim.id for claim in await take(link)] == [plain.id]
    with pytest.raises(ConnectionResetError):
        await take(link)


# What must not happen, and what it costs.


async def test_a_snapshot_that_is_older_than_the_lock_is_refused(
    engine: AsyncEngine, sessions: Sessions, link: Link
) -> None:
    [id] = await enqueue(sessions)
    async with sessions() as session:
        _ = await session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        with pytest.raises(DBAPIError, match="READ COMMITTED"):
            await control.cancel(session, id)


async def test_the_database_refuses_two_open_jobs_of_a_group(db: asyncpg.Connection, sessions: Sessions) -> None:
    await enqueue(sessions, count=2)
    with pytest.raises(asyncpg.UniqueViolationError, match="live_job_open"):
        await db.execute("update outbox.live_job set blocked = null")


async def test_a_group_whose_head_was_deleted_by_hand_goes_on(
    sessions: Sessions, link: Link, db: asyncpg.Connection
) -> None:
    for name in "abc":
        await enqueue(sessions, group=name, count=3)
    taken = await take(link)
    await db.execute("delete from outbox.live_job where id = any ($1)", [claim.id for claim in taken[:2]])
    assert await take(link) == []
    await maintenance.mend_groups(link)
    assert {claim.group for claim in await take(link)} == {claim.group for claim in taken[:2]}
    await maintenance.mend_groups(link)
    assert await take(link) == []


async def test_a_hundred_thousand_waiting_jobs_of_one_group_are_in_nobodys_way(
    engine: AsyncEngine, sessions: Sessions, link: Link, db: asyncpg.Connection
) -> None:
    await db.execute("alter table outbox.live_job set (autovacuum_enabled = off)")
    await db.execute(
        """
        insert into outbox.live_job (task, group_key, blocked, run_at)
        select 'noop', 'long', 'group', now() - interval '1 hour' from generate_series(1, 100000)
        """
    )
    await db.execute("insert into outbox.live_job (task, group_key) values ('noop', 'long')")
    await take(link)
    connection = await link.connection()
    before = await rows_read(connection)
    await enqueue(sessions, group="short", count=2)
    [claim] = await take(link)
    assert claim.group == "short"
    await end(link, claim)
    [claim] = await take(link)
    assert claim.group == "short"
    assert await rows_read(connection) - before < 100


async def rows_read(connection: asyncpg.Connection) -> int:
    await connection.execute("select pg_stat_force_next_flush()")
    read = await connection.fetchval(
        "select idx_tup_fetch + seq_tup_read from pg_stat_user_tables where relid = 'outbox.live_job'::regclass"
    )
    return int(read)


async def test_a_group_that_takes_all_at_once_is_let_in_by_portions(
    engine: AsyncEngine, sessions: Sessions, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "ADMITTED", 10)
    ids = await enqueue(sessions, group="long", count=35)
    [short] = await enqueue(sessions, group="short")
    seen: list[UUID] = []
    for _ in range(5):
        seen += [claim.id for claim in await take(link)]
    assert seen == [ids[0], short]


async def test_everything_about_a_group_can_be_seen(engine: AsyncEngine, sessions: Sessions, link: Link) -> None:
    first, second = await enqueue(sessions, count=2, passable=True)
    before: Job = await read(engine, second)
    assert (before.group_key, before.passable, before.blocked) == ("g", True, "new")
    [claim] = await take(link)
    jobs = [await read(engine, id) for id in (first, second)]
    assert [job.blocked for job in jobs] == [None, "group"]
    assert await blocked_by(engine, first) is None
    await end(link, claim)
    done = await read(engine, first)
    assert (done.group_key, done.passable, done.blocked) == ("g", True, None)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"passable": True}, "group"),
        ({"group": ""}, "group"),
        ({"group": "x" * 201}, "group"),
        ({"group": "a\x00b"}, "group"),
        ({"group": "g", "key": "k", "on_conflict": "replace"}, "replace"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        noop.options(**options)


async def test_what_a_group_costs_and_who_pays_for_it(sessions: Sessions, link: Link, sent: list[str]) -> None:
    async with sessions.begin() as session:
        noop.enqueue(session)
    [claim] = await take(link)
    await end(link, claim)
    assert sent == [sql.CLAIM, sql.FINISH]
    sent.clear()
    await enqueue(sessions)
    [claim] = await take(link)
    await end(link, claim)
    assert sent == [sql.CLAIM, sql.ADMIT, sql.CLAIM, sql.LOCK_GROUPS, sql.FINISH, sql.OPEN_GROUPS]
