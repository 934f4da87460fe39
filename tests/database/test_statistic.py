"""What workers have done is counted by minute and hour, by whoever did it, and read without counting jobs."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from outbox import Outbox, Retry, Snooze, State, maintenance, presence, statistic
from outbox.connection import Link
from outbox.outcome import Finished
from outbox.presence import Presence
from outbox.statistic import Point
from outbox.tally import Tally
from tests import factories
from tests.database.workers import drained, working
from tests.factories import new_id, plant, plant_many
from tests.waiting import eventually

Sessions = async_sessionmaker[AsyncSession]

HOUR = timedelta(hours=1)


async def read(sessions: Sessions, *, merge: bool = False, **options: object) -> list[Point]:
    """What was counted; merged if a minute or an hour may have turned meanwhile."""
    now = datetime.now(UTC)
    async with sessions() as session:
        points = await statistic.read(session, now - 2 * HOUR, now + HOUR, **options)  # type: ignore[arg-type]
    return [*_merged(points)] if merge else points


def _merged(points: list[Point]) -> Iterator[Point]:
    for names in sorted({(each.queue, each.task, each.outcome) for each in points}):
        same = [each for each in points if (each.queue, each.task, each.outcome) == names]
        waits, runs = statistic.add([each.waits for each in same]), statistic.add([each.runs for each in same])
        yield Point(same[0].starts_at, *names, sum(each.count for each in same), waits, runs)


def counted(count: int, task: str = "noop", ran: float = 0.01) -> Tally:
    tally = Tally()
    for _ in range(count):
        tally.note("default", task, Finished(State.SUCCEEDED), 0.5, ran)
    return tally


async def test_what_is_written_twice_adds_up(sessions: Sessions, link: Link) -> None:
    for count, ran in ((3, 0.01), (4, 100.0)):
        await statistic.write(link, counted(count, ran=ran).take())
    for span in ("minute", "ten minutes", "hour"):
        points = await read(sessions, span=span, merge=True)
        [point] = points
        assert (point.queue, point.task, point.outcome, point.count) == ("default", "noop", "succeeded", 7)
        assert sum(point.waits) == sum(point.runs) == 7
        slow = statistic.quantile(point.runs, 0.9)
        assert slow is not None
        assert slow >= 100


async def test_workers_that_write_at_the_same_time_wait_for_each_other_and_lose_nothing(
    sessions: Sessions, link: Link, other_link: Link
) -> None:
    async def write(link: Link, tasks: list[str]) -> None:
        for _ in range(20):
            tally = Tally()
            for task in tasks:
                tally.note("default", task, Finished(State.SUCCEEDED), 0, 0)
            await statistic.write(link, tally.take())

    await asyncio.gather(write(link, ["a", "b", "c"]), write(other_link, ["c", "b", "a"]))
    points = await read(sessions, span="hour", merge=True)
    assert {point.task: point.count for point in points} == {"a": 40, "b": 40, "c": 40}


async def test_filters(sessions: Sessions, link: Link) -> None:
    await statistic.write(link, counted(2, "a").take() | counted(3, "b").take())
    assert [point.task for point in await read(sessions, task="b")] == ["b"]
    assert await read(sessions, queue="other") == []
    assert sum(point.count for point in await read(sessions)) == 5


async def test_old_counts_are_forgotten(db: asyncpg.Connection, link: Link) -> None:
    for seconds, hours in ((60, 2), (60, 25), (600, 25), (600, 170), (3600, 170), (3600, 2401)):
        await db.execute(
            "insert into outbox.statistic "
            "values ($1, now() - make_interval(hours => $2), 'q', 't', 'failed', 1, '{}', '{}')",
            seconds,
            hours,
        )
        await db.execute(
            "insert into outbox.backlog values (now() - make_interval(hours => $1), $2, 1, 0, 0, 0)",
            hours,
            str(seconds),
        )
    await maintenance.keep_partitions(link, 14)
    kept = await db.fetch(
        "select seconds, round(extract(epoch from now() - starts_at) / 3600) from outbox.statistic order by 1"
    )
    assert [tuple(row) for row in kept] == [(60, 2), (600, 25), (3600, 170)]
    hours = await db.fetch("select round(extract(epoch from now() - at) / 3600) from outbox.backlog order by at desc")
    assert [row[0] for row in hours] == [2, 25, 25, 170, 170]


async def test_one_worker_writes_down_how_queues_stand_once_a_minute(
    sessions: Sessions, engine: AsyncEngine, link: Link, other_link: Link
) -> None:
    await plant_many(engine, 3, queue="mail", ago=90)
    await plant(engine, "running", queue="mail")
    await plant(engine, "scheduled", queue="later")
    for each in (link, other_link, link):
        await statistic.record(each)
    now = datetime.now(UTC)
    async with sessions() as session:
        seen = await statistic.backlog(session, now - HOUR, now + HOUR, step=7200)
    assert [(each.queue, each.ready, each.running) for each in seen] == [("later", 0, 0), ("mail", 3, 1)]
    assert seen[1].waited >= 90


async def test_a_queue_that_has_emptied_is_written_down_as_empty(db: asyncpg.Connection, link: Link) -> None:
    await db.execute("insert into outbox.backlog values (now() - interval '1 minute', 'mail', 7, 0, 0, 1)")
    await statistic.record(link)
    rows = await db.fetch("select ready from outbox.backlog where queue = 'mail' order by at")
    assert [row["ready"] for row in rows] == [7, 0]


async def test_a_worker_counts_its_attempts_to_the_last(
    engine: AsyncEngine, sessions: Sessions, database_url: str, db: asyncpg.Connection
) -> None:
    outbox = Outbox()

    @outbox.task()
    async def noop(n: int) -> int:
        return n

    @outbox.task(retry=Retry(max_attempts=2, base=0, cap=0))
    async def fail() -> None:
        raise ValueError

    @outbox.task()
    async def later() -> Snooze:
        return Snooze(3600)

    await plant_many(engine, 200)
    await plant(engine, task="fail")
    await plant(engine, task="later")
    async with working(outbox, database_url) as (worker, _):

        async def only_the_one_for_later_is_left() -> bool:
            left = await db.fetch("select run_at > now() as later from outbox.live_job")
            return [row["later"] for row in left] == [True]

        await eventually(only_the_one_for_later_is_left)
    expected = {
        ("noop", "succeeded"): 200,
        ("fail", "retried"): 1,
        ("fail", "failed"): 1,
        ("later", "snoozed"): 1,
    }
    points = await read(sessions, span="hour", merge=True)
    assert {(point.task, point.outcome): point.count for point in points} == expected
    told = worker.meter.total()
    assert {(task, outcome): each.count for (_, task, outcome), each in told.items() if each.count} == expected
    assert all(sum(each.waits) == sum(each.runs) == each.count for each in told.values())
    assert worker.meter.leases_lost == 0


async def test_a_wait_counts_from_when_a_job_was_due(
    engine: AsyncEngine, sessions: Sessions, database_url: str
) -> None:
    outbox = Outbox()

    @outbox.task()
    async def noop() -> None: ...

    await plant(engine, run_at=factories.ago(100))
    async with working(outbox, database_url):
        await drained(engine)
    [point] = await read(sessions, span="hour", merge=True)
    wait = statistic.quantile(point.waits, 0.5)
    assert wait is not None
    assert 100 <= wait <= 200


# Workers.


async def test_a_worker_is_there_while_it_works_and_gone_when_it_has_left(
    engine: AsyncEngine, sessions: Sessions, database_url: str
) -> None:
    outbox = Outbox()
    started, end = asyncio.Event(), asyncio.Event()

    @outbox.task(version=3)
    async def hold() -> None:
        started.set()
        await end.wait()

    @hold.upcast(1)
    def _one(arguments: dict[str, object]) -> dict[str, object]:
        return arguments

    @hold.upcast(2)
    def _two(arguments: dict[str, object]) -> dict[str, object]:
        return arguments

    await plant(engine, task="hold")

    async def workers() -> list[presence.WorkerRow]:
        async with sessions() as session:
            return list(await presence.workers(session))

    async with working(outbox, database_url, queues={"default": 10, "mail": 2}) as (worker, _):
        await started.wait()
        [row] = await eventually(workers)
        assert (row.id, dict(row.queues), dict(row.tasks)) == (worker.id, {"default": 10, "mail": 2}, {"hold": 3})
        assert (row.alive, row.running, row.stopping_at) == (True, 1, None)
        end.set()
    assert await workers() == []


async def test_a_worker_that_was_killed_is_not_alive_and_forgotten_after_a_day(
    sessions: Sessions, link: Link, db: asyncpg.Connection
) -> None:
    known = Presence(id=new_id(), queues={"default": 1}, tasks={"noop": 1}, lease=30.0)
    await known.appear(link)
    await db.execute("update outbox.worker set seen_at = now() - interval '31 seconds'")
    async with sessions() as session:
        [row] = await presence.workers(session)
    assert not row.alive
    await maintenance.keep_partitions(link, 14)
    assert await db.fetchval("select count(*) from outbox.worker") == 1
    await db.execute("update outbox.worker set seen_at = now() - interval '25 hours'")
    await maintenance.keep_partitions(link, 14)
    assert await db.fetchval("select count(*) from outbox.worker") == 0


async def test_a_worker_says_that_it_is_leaving(link: Link, db: asyncpg.Connection) -> None:
    known = Presence(id=new_id(), queues={"default": 1}, tasks={"noop": 1}, lease=30.0)
    await known.appear(link)
    await known.appear(link, stopping=True)
    first = await db.fetchval("select stopping_at from outbox.worker")
    await known.appear(link, stopping=True)
    assert first is not None
    assert await db.fetchval("select stopping_at from outbox.worker") == first
    await known.leave(link)
    assert await db.fetchval("select count(*) from outbox.worker") == 0
