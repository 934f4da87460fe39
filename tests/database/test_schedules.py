"""A schedule fires once for each moment it names, whatever workers and clocks do, and people may steer it."""

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import asyncpg
import pytest
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from outbox import INJECTED, Job, JobContext, Limit, Outbox, Retry, State, limit, maintenance, schedule, ticks
from outbox.connection import Link
from outbox.errors import DeclarationError, ScheduleNotFound
from outbox.schedule import CatchUp, Schedule, Scheduled
from outbox.secret import Keyring
from tests import factories
from tests.database.workers import drained, working
from tests.factories import new_id, plant
from tests.waiting import eventually

Sessions = async_sessionmaker[AsyncSession]

outbox = Outbox()


@outbox.task()
async def noop(n: int = 0) -> None: ...


@outbox.task()
async def daily(day: datetime) -> None: ...


@pytest.fixture(autouse=True)
async def not_over_the_turn_of_a_minute(db: asyncpg.Connection) -> None:
    """Else a minute that has really passed would be one more than the test says."""

    async def some_seconds_are_left() -> bool:
        return bool(await db.fetchval("select extract(second from clock_timestamp()) < 55"))

    await eventually(some_seconds_are_left)


def every_minute(**options: Any) -> Schedule:
    return Schedule(**{"name": "s", "job": noop.job(7), "cron": "* * * * *", **options})


async def put(sessions: Sessions, given: Schedule) -> None:
    async with sessions.begin() as session:
        await schedule.put(session, given)


async def get(sessions: Sessions, name: str = "s") -> Scheduled:
    async with sessions() as session:
        found = await schedule.get(session, name)
    assert found is not None
    return found


async def fire(link: Link) -> int:
    return await ticks.fire_due(link, ["noop", "daily"])


async def passed(db: asyncpg.Connection, minutes: float) -> None:
    """Let time pass: what is next was to come so much earlier."""
    await db.execute("update outbox.schedule set next_at = next_at - make_interval(secs => $1 * 60)", float(minutes))


async def jobs(engine: AsyncEngine) -> list[Job]:
    return await factories.read_all(engine)


# Firing.


async def test_nothing_before_its_time_and_one_job_at_it(
    engine: AsyncEngine, sessions: Sessions, link: Link, db: asyncpg.Connection
) -> None:
    await put(sessions, every_minute())
    assert await fire(link) == 0
    await passed(db, 1)
    due = (await get(sessions)).next_at
    assert due is not None
    assert await fire(link) == 1
    assert await fire(link) == 0
    [job] = await jobs(engine)
    assert (job.task, job.payload, job.queue) == ("noop", {"n": 7}, "default")
    after = await get(sessions)
    assert after.next_at is not None
    assert after.last_at is not None
    assert after.next_at - after.last_at == timedelta(minutes=1)
    assert await db.fetchval("select nominal from outbox.tick where job_id = $1", job.id) == after.last_at


@pytest.mark.parametrize(("catch_up", "expected"), [("skip", 1), ("latest", 1), ("all", 61)])
async def test_what_was_missed_is_made_up_for_as_it_says(
    engine: AsyncEngine, sessions: Sessions, link: Link, db: asyncpg.Connection, catch_up: CatchUp, expected: int
) -> None:
    await put(sessions, every_minute(catch_up=catch_up))
    await passed(db, 61)
    assert await fire(link) == expected
    assert await fire(link) == 0
    made = await db.fetch("select nominal, job_id from outbox.tick order by nominal")
    assert [job.id for job in sorted(await jobs(engine), key=lambda job: job.run_at)] == [row["job_id"] for row in made]
    nominals = [row["nominal"] for row in made]
    assert {nominal.second for nominal in nominals} == {0}
    assert all(later - sooner == timedelta(minutes=1) for sooner, later in pairwise(nominals))


@pytest.mark.parametrize(("catch_up", "expected"), [("skip", 0), ("latest", 1), ("all", 2)])
async def test_what_is_long_past_is_skipped_or_made_up_for(
    engine: AsyncEngine, sessions: Sessions, link: Link, db: asyncpg.Connection, catch_up: CatchUp, expected: int
) -> None:
    now = await db.fetchval("select clock_timestamp()")
    ago = (now - timedelta(hours=12)).astimezone(UTC)
    await put(sessions, every_minute(cron=f"{ago.minute} {ago.hour} * * *", catch_up=catch_up))
    await passed(db, 2 * 24 * 60)
    assert await fire(link) == expected
    after = await get(sessions)
    assert after.next_at is not None
    assert after.next_at > now


async def test_very_many_missed_ticks_are_made_up_for_in_portions(
    engine: AsyncEngine, sessions: Sessions, link: Link, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ticks, "AT_ONCE", 10)
    await put(sessions, every_minute(catch_up="all"))
    await passed(db, 25)
    assert [await fire(link) for _ in range(4)] == [10, 10, 5, 0]


async def test_a_clock_that_is_set_back_fires_for_nothing_twice(
    engine: AsyncEngine, sessions: Sessions, link: Link, db: asyncpg.Connection
) -> None:
    await put(sessions, every_minute(catch_up="all"))
    await passed(db, 5)
    assert await fire(link) == 5
    await passed(db, 5)  # as if nothing of it had happened
    assert await fire(link) == 0
    assert await factories.count(engine) == 5


async def test_many_workers_at_once_fire_once_for_each_moment(
    engine: AsyncEngine, sessions: Sessions, database_url: str, db: asyncpg.Connection
) -> None:
    shop = Outbox()
    ran: list[tuple[str, datetime]] = []

    @shop.task()
    async def step(name: str, at: datetime) -> None:
        ran.append((name, at))

    for n in range(20):
        shop.cron("* * * * *", name=f"s{n}", catch_up="all", moment="at", arguments={"name": f"s{n}"})(step)
    async with working(shop, database_url), working(shop, database_url), working(shop, database_url):

        async def declared() -> bool:
            return bool(await db.fetchval("select count(*) = 20 from outbox.schedule"))

        await eventually(declared)
        await passed(db, 30)

        async def fired() -> bool:
            return bool(await db.fetchval("select count(*) >= 600 from outbox.tick"))

        await eventually(fired)
        await drained(engine)
    assert set(Counter(ran).values()) == {1}
    nominals = {
        (row["schedule"], row["nominal"]) for row in await db.fetch("select schedule, nominal from outbox.tick")
    }
    assert set(ran) == nominals


async def test_a_firing_that_is_rolled_back_is_made_up_for(
    engine: AsyncEngine, sessions: Sessions, link: Link, db: asyncpg.Connection
) -> None:
    await put(sessions, every_minute())
    await passed(db, 1)
    firing = db.transaction()
    await firing.start()
    assert len(await db.fetch(ticks._DUE, ["noop"], 10)) == 1
    assert await fire(link) == 0  # it does not wait
    await firing.rollback()
    assert await fire(link) == 1


async def test_a_schedule_of_a_task_that_nobody_knows_waits_for_one_who_does(
    engine: AsyncEngine, sessions: Sessions, link: Link, db: asyncpg.Connection
) -> None:
    await put(sessions, every_minute())
    await passed(db, 10)
    assert await ticks.fire_due(link, ["another"]) == 0
    assert await ticks.seconds_to_next(link, ["another"]) is None
    assert await fire(link) == 1


async def test_one_that_cannot_be_read_does_not_hold_up_the_others(
    engine: AsyncEngine, sessions: Sessions, link: Link, db: asyncpg.Connection
) -> None:
    await put(sessions, every_minute(name="bad"))
    await put(sessions, every_minute(name="good"))
    await db.execute("update outbox.schedule set expression = 'x' where name = 'bad'")
    await passed(db, 1)
    assert await fire(link) == 1
    assert await fire(link) == 0
    [job] = await jobs(engine)
    assert await db.fetchval("select schedule from outbox.tick where job_id = $1", job.id) == "good"


async def test_jitter_puts_each_job_off_by_another_part(
    engine: AsyncEngine, sessions: Sessions, link: Link, db: asyncpg.Connection
) -> None:
    await put(sessions, every_minute(catch_up="all", jitter=30))
    await passed(db, 20)
    before = await db.fetchval("select clock_timestamp()")
    assert await fire(link) == 20
    after = await db.fetchval("select clock_timestamp()")
    moments = {job.run_at for job in await jobs(engine)}
    assert len(moments) == 20
    assert before <= min(moments)
    assert after + timedelta(seconds=1) < max(moments) < after + timedelta(seconds=30)


async def test_each_job_learns_which_moment_it_stands_for(
    engine: AsyncEngine, sessions: Sessions, link: Link, db: asyncpg.Connection
) -> None:
    job = daily.job(datetime(2020, 1, 1, tzinfo=UTC))
    await put(sessions, every_minute(job=job, moment="day", catch_up="all"))
    await passed(db, 3)
    assert await fire(link) == 3
    seen = [datetime.fromisoformat(job.payload["day"]) for job in await jobs(engine)]
    assert sorted(seen) == [
        row["nominal"] for row in await db.fetch("select nominal from outbox.tick order by nominal")
    ]


async def test_its_jobs_have_the_version_of_their_arguments(
    engine: AsyncEngine, sessions: Sessions, link: Link, db: asyncpg.Connection
) -> None:
    shop = Outbox()
    shop.task(name="noop", version=2)(noop.handler).upcast(1)(lambda arguments: arguments)
    shop.cron("* * * * *")(shop["noop"])
    await start(link, shop)
    await passed(db, 1)
    await fire(link)
    async with sessions.begin() as session:
        await schedule.fire(session, "noop")
    assert [job.version for job in await jobs(engine)] == [2, 2]


def test_it_keeps_no_secrets() -> None:
    shop = Outbox(secrets=Keyring({"k": b"x" * 32}, current="k"))

    @shop.task()
    async def step(token: SecretStr) -> None: ...

    with pytest.raises(ValueError, match="secrets"):
        every_minute(job=step.job(SecretStr("t")))


async def test_its_jobs_have_the_options_of_its_own(
    engine: AsyncEngine, sessions: Sessions, link: Link, db: asyncpg.Connection
) -> None:
    options = noop.options(queue="mail", priority=3, max_attempts=2, tags=["t"], group="g", limit_key="k")
    async with sessions.begin() as session:
        await limit.put(session, "queue", "mail", Limit(concurrency=1))
    await put(sessions, every_minute(job=options.job(1)))
    await passed(db, 1)
    await fire(link)
    async with sessions.begin() as session:
        await schedule.fire(session, "s")
    for job in await jobs(engine):
        assert (job.queue, job.priority, job.max_attempts, job.tags) == ("mail", 3, 2, ["t"])
        assert (job.group_key, job.blocked, job.limit_key, job.limited) == ("g", "new", "k", True)


async def test_a_locked_table_does_not_keep_leases_from_being_renewed(
    engine: AsyncEngine, sessions: Sessions, database_url: str, db: asyncpg.Connection
) -> None:
    shop = Outbox()
    go_on = asyncio.Event()
    runs: list[int] = []

    @shop.task(retry=Retry(max_attempts=1))
    async def step(*, ctx: JobContext = INJECTED) -> None:
        runs.append(ctx.fence)
        await go_on.wait()

    async with sessions.begin() as session:
        id = step.enqueue(session).id
    async with working(shop, database_url, lease=2.0):
        await eventually(lambda: _true(runs))
        async with db.transaction():
            await db.execute("lock table outbox.schedule in access exclusive mode")
            first = (await factories.read(engine, id)).lease_until

            async def renewed_twice() -> bool:
                lease = (await factories.read(engine, id)).lease_until
                return lease is not None and first is not None and lease > first + timedelta(seconds=3)

            await eventually(renewed_twice)
        go_on.set()
        await drained(engine)
    assert runs == [1]


async def _true(what: object) -> bool:
    return bool(what)


# What people may do.


async def test_paused_it_does_not_fire_and_resumed_it_does_from_then_on(
    engine: AsyncEngine, sessions: Sessions, link: Link, db: asyncpg.Connection
) -> None:
    await put(sessions, every_minute(catch_up="all"))
    async with sessions.begin() as session:
        await schedule.pause(session, "s")
    paused = await get(sessions)
    assert paused.paused_at is not None
    assert paused.upcoming(3) == []
    await passed(db, 10)
    assert await fire(link) == 0
    async with sessions.begin() as session:
        await schedule.pause(session, "s")
    assert (await get(sessions)).paused_at == paused.paused_at
    async with sessions.begin() as session:
        await schedule.resume(session, "s")
    resumed = await get(sessions)
    assert resumed.paused_at is None
    assert len(resumed.upcoming(3)) == 3
    assert await fire(link) == 0
    await passed(db, 1)
    assert await fire(link) == 1


async def test_fired_by_hand_it_enqueues_a_job_and_no_tick(
    engine: AsyncEngine, sessions: Sessions, db: asyncpg.Connection
) -> None:
    await put(sessions, every_minute())
    async with sessions.begin() as session:
        await schedule.pause(session, "s")
        job = await schedule.fire(session, "s")
    [found] = await jobs(engine)
    assert (found.id, found.payload) == (job.id, {"n": 7})
    assert await db.fetchval("select count(*) from outbox.tick") == 0


async def test_changed_it_fires_by_the_new_expression(
    engine: AsyncEngine, sessions: Sessions, link: Link, db: asyncpg.Connection
) -> None:
    await put(sessions, every_minute())
    await passed(db, 5)
    await put(sessions, every_minute(cron="@yearly", job=noop.job(8)))
    assert await fire(link) == 0
    after = await get(sessions)
    assert after.next_at is not None
    assert (after.cron, after.payload) == ("@yearly", {"n": 8})
    assert (after.next_at.month, after.next_at.day) == (1, 1)


async def test_deleted_it_is_gone_and_its_jobs_stay(
    engine: AsyncEngine, sessions: Sessions, link: Link, db: asyncpg.Connection
) -> None:
    await put(sessions, every_minute())
    await passed(db, 1)
    await fire(link)
    async with sessions.begin() as session:
        await schedule.delete(session, "s")
        assert await schedule.all_of_them(session) == []
    assert await factories.count(engine) == 1


@pytest.mark.parametrize("verb", [schedule.delete, schedule.pause, schedule.resume, schedule.fire])
async def test_one_that_is_not_there_is_said_so(sessions: Sessions, verb: Any) -> None:
    async with sessions() as session:
        with pytest.raises(ScheduleNotFound, match="nothing"):
            await verb(session, "nothing")
        assert await schedule.get(session, "nothing") is None


async def test_whatever_is_rolled_back_has_not_been(engine: AsyncEngine, sessions: Sessions) -> None:
    async with sessions() as session:
        await schedule.put(session, every_minute())
        await schedule.fire(session, "s")
        await session.rollback()
        assert await schedule.all_of_them(session) == []
    assert await factories.count(engine) == 0


# What code declares.


def declared(expression: str | None, **options: Any) -> Outbox:
    shop = Outbox()
    task = shop.task(name="noop")(noop.handler)
    if expression is not None:
        shop.cron(expression, **options)(task)
    return shop


async def start(link: Link, shop: Outbox) -> None:
    await ticks.declare(link, [task.name for task in shop], shop.schedules)


async def test_code_declares_and_a_person_overrules(sessions: Sessions, link: Link) -> None:
    await start(link, declared("@daily"))
    found = await get(sessions, "noop")
    assert (found.cron, found.declared, found.payload) == ("@daily", True, {})
    async with sessions.begin() as session:
        await schedule.pause(session, "noop")
    await start(link, declared("@hourly", arguments={"n": 3}))
    found = await get(sessions, "noop")
    assert (found.cron, found.payload, found.paused_at is None) == ("@hourly", {"n": 3}, False)
    await start(link, Outbox())  # that code does not speak for the task
    await put(sessions, every_minute(name="noop", cron="@weekly"))
    await start(link, declared("@monthly"))
    found = await get(sessions, "noop")
    assert (found.cron, found.declared) == ("@weekly", False)
    await start(link, declared(None))
    assert (await get(sessions, "noop")).cron == "@weekly"
    async with sessions.begin() as session:
        await schedule.delete(session, "noop")
    await start(link, declared("@daily"))
    await start(link, declared(None))
    async with sessions() as session:
        assert await schedule.all_of_them(session) == []


async def test_a_restart_forgets_no_tick_that_is_due(
    engine: AsyncEngine, sessions: Sessions, link: Link, db: asyncpg.Connection
) -> None:
    await start(link, declared("* * * * *"))
    await passed(db, 5)
    await start(link, declared("* * * * *", jitter=0.5))
    assert await fire(link) == 1


def test_one_task_may_have_several_schedules() -> None:
    shop = Outbox()

    @shop.cron("@daily", name="in the night", arguments={"n": 1})
    @shop.cron("@hourly", tz="Europe/Berlin")
    @shop.task()
    async def step(n: int = 0) -> None: ...

    assert [(each.name, each.cron, each.tz) for each in shop.schedules] == [
        ("step", "@hourly", "Europe/Berlin"),
        ("in the night", "@daily", "UTC"),
    ]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"expression": "0 0 30 2 *"}, "cron"),
        ({"expression": "@daily", "tz": "Nowhere"}, "tz"),
        ({"expression": "@daily", "catch_up": "some"}, "catch_up"),
        ({"expression": "@daily", "jitter": -1}, "delay"),
        ({"expression": "@daily", "name": ""}, "name"),
        ({"expression": "@daily", "arguments": {"n": "x"}}, r"\$\.n"),
        ({"expression": "@daily", "arguments": {"m": 1}}, "m"),
        ({"expression": "@daily", "moment": "m"}, "m"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused_at_once(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(DeclarationError, match=reason):
        declared(**options)


def test_schedules_are_declared_once_and_above_the_task() -> None:
    shop = declared("@daily")
    with pytest.raises(DeclarationError, match="twice"):
        shop.cron("@hourly")(shop["noop"])
    with pytest.raises(DeclarationError, match="above"):
        shop.cron("@hourly")(lambda: None)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"key": "k"}, {"delay": 5}, {"group": "g", "passable": True}])
def test_options_that_a_schedule_cannot_have_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="job"):
        every_minute(job=noop.options(**options).job())


# What it costs.


async def test_old_ticks_are_pruned_and_later_ones_kept(sessions: Sessions, link: Link, db: asyncpg.Connection) -> None:
    await put(sessions, every_minute(catch_up="all"))
    await passed(db, 2)
    await fire(link)
    first = await db.fetchval("select min(nominal) from outbox.tick")
    await db.execute("update outbox.tick set fired_at = now() - interval '15 days' where nominal = $1", first)
    await maintenance.keep_partitions(link, 14)
    assert await db.fetchval("select count(*) from outbox.tick") == 1


async def test_nothing_due_costs_a_statement(sessions: Sessions, link: Link, sent: list[str]) -> None:
    await put(sessions, every_minute())
    sent.clear()
    await fire(link)
    assert sent == [ticks._DUE]


async def test_the_history_of_a_schedule_says_what_became_of_its_jobs(sessions: Sessions, engine: AsyncEngine) -> None:
    kept = await plant(engine, "failed")
    async with sessions.begin() as session:
        for name in ("a", "b"):
            await schedule.put(session, Schedule(name=name, job=noop.job(), cron="* * * * *"))
        for minutes, job_id in ((3, new_id()), (2, kept), (1, new_id())):
            await session.execute(
                text("insert into outbox.tick values ('a', now() - make_interval(mins => :ago), :id)"),
                {"ago": minutes, "id": job_id},
            )
    async with sessions() as session:
        ticks = await schedule.history(session, each=2)
        assert [(tick.schedule, tick.state) for tick in ticks] == [("a", State.FAILED), ("a", None)]
        assert ticks[0].job_id == kept
        assert await schedule.history(session, name="b") == []
