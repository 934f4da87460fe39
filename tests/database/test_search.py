"""Jobs are found by any filter, page by page, and no page looks at more than so many jobs."""

import re
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from outbox import State, status
from outbox.status import JobFilter
from tests import factories
from tests.factories import ago, plant, plant_many


async def found(session: AsyncSession, **wanted: Any) -> list[UUID]:
    """All pages."""
    ids: list[UUID] = []
    before = None
    while True:
        page = await status.page(session, JobFilter(**wanted), limit=2, before=before)
        ids += [job.id for job in page.jobs]
        if (before := page.next) is None:
            return ids


@pytest.mark.parametrize(
    "wanted",
    [
        {"states": [State.FAILED]},
        {"states": [State.PENDING, State.FAILED]},
        {"states": [State.RUNNING]},
        {"states": [State.SUCCEEDED]},
        {"states": [State.SUCCEEDED, State.FAILED, State.PENDING]},
        {"tasks": ["send"]},
        {"tasks": ["send", "noop"]},
        {"queues": ["mail"]},
        {"tags": ["red"]},
        {"tags": ["red", "blue"]},
        {"key": "k"},
        {"group": "g"},
        {"tenant": "acme"},
        {"tenant": "acme", "states": [State.FAILED], "tasks": ["send"]},
        {"arguments": {"order": {"id": 42}}},
        {"arguments": {"order": {"id": 42}}, "queues": ["mail"]},
        {"arguments": {"list": [1]}},
        {"states": [State.RUNNING, State.PENDING], "tags": ["red"]},
        {},
    ],
    ids=str,
)
async def test_a_filter_finds_what_it_describes(engine: AsyncEngine, session: AsyncSession, wanted: Any) -> None:
    columns: list[dict[str, Any]] = [
        {},
        {"task": "send", "queue": "mail", "tags": ["red"], "payload": {"order": {"id": 42, "name": "x"}}},
        {"tags": ["blue", "red"], "tenant": "acme", "payload": {"list": [1, 2]}},
        {"task": "send", "tenant": "acme", "payload": {"order": {"id": 43}}},
        {"group_key": "g", "queue": "mail"},
    ]
    kinds = ["pending", "running", "failed", "succeeded", "cancelled"]
    jobs = []
    for kind in kinds:
        for n, each in enumerate(columns):
            own = dict(each)
            if "group_key" in own and kind == "pending":
                own["blocked"] = "new"
            if n == 0:
                own["key"] = "k" if kind == "failed" else f"other {kind}"
            jobs.append(await factories.read(engine, await plant(engine, kind, **own)))

    def matches(job: Any) -> bool:
        said = JobFilter(**wanted)
        return (
            (not said.states or job.state in said.states)
            and (not said.tasks or job.task in said.tasks)
            and (not said.queues or job.queue in said.queues)
            and (not said.tags or bool(set(said.tags) & set(job.tags)))
            and said.key in (None, job.key)
            and said.group in (None, job.group_key)
            and said.tenant in (None, job.tenant)
            and contains(job.payload, said.arguments)
        )

    expected = [job.id for job in jobs if matches(job)]
    assert expected
    assert await found(session, **wanted) == expected[::-1]


def contains(have: Any, want: Any) -> bool:
    if isinstance(want, dict):
        return isinstance(have, dict) and all(key in have and contains(have[key], want[key]) for key in want)
    if isinstance(want, list):
        return isinstance(have, list) and all(any(contains(each, one) for each in have) for one in want)
    return bool(have == want)


async def test_times_are_those_of_the_ids(engine: AsyncEngine, session: AsyncSession, db: asyncpg.Connection) -> None:
    old = await plant(engine, "succeeded", id=await db.fetchval("select outbox.first_id(now() - interval '2 days')"))
    new = await plant(engine)
    middle = await db.fetchval("select now() - interval '1 day'")
    assert await found(session, created_after=middle) == [new]
    assert await found(session, created_before=middle) == [old]
    assert await found(session, created_after=middle, created_before=middle) == []


async def test_a_search_without_an_index_looks_at_so_many_jobs_a_page_and_goes_on(
    engine: AsyncEngine, session: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "SEARCHED", 10)
    oldest = await plant(engine, tags=["rare"])
    for _ in range(35):
        await plant(engine)
    newest = await plant(engine, "failed", tags=["rare"])
    pages = []
    before = None
    while True:
        page = await status.page(session, JobFilter(tags=["rare"]), before=before)
        pages.append(([job.id for job in page.jobs], page.searched))
        if (before := page.next) is None:
            break
    assert pages == [([newest], True), ([], True), ([], True), ([oldest], False)]
    # An index serves these: one page has them all.
    page = await status.page(session, JobFilter(states=[State.FAILED]))
    assert ([job.id for job in page.jobs], page.searched) == ([newest], False)


async def test_ids_of_a_filter_are_the_oldest_first(engine: AsyncEngine, session: AsyncSession) -> None:
    planted = [await plant(engine, "failed", tags=["t"] if n % 2 else None) for n in range(6)]
    assert await status.ids(session, JobFilter(states=[State.FAILED]), limit=4) == planted[:4]
    assert await status.ids(session, JobFilter(tags=["t"]), limit=10) == planted[1::2]


async def test_the_jobs_of_a_worker(engine: AsyncEngine, session: AsyncSession) -> None:
    first = await plant(engine, "running", started_at=ago(60))
    second = await plant(engine, "running", started_at=ago(5))
    await plant(engine, "running", worker_id=factories.new_id())
    await plant(engine, "succeeded")
    claimed = await status.claimed_by(session, factories.WORKER)
    assert [job.id for job in claimed] == [first, second]


async def test_several_are_those_that_there_are(engine: AsyncEngine, session: AsyncSession) -> None:
    ids = [await plant(engine, kind) for kind in ("pending", "failed")]
    assert {job.id for job in await status.several(session, [*ids, factories.new_id()])} == set(ids)
    assert await status.several(session, []) == []


@pytest.mark.parametrize(
    "wanted",
    [
        JobFilter(),
        JobFilter(states=[State.FAILED]),
        JobFilter(states=[State.FAILED], tasks=["noop"]),
        JobFilter(states=[State.PENDING], queues=["mail"]),
        JobFilter(states=[State.SUCCEEDED], tags=["rare"]),
        JobFilter(arguments={"n": 1}),
        JobFilter(tenant="acme"),
        JobFilter(key="k"),
    ],
    ids=str,
)
async def test_no_page_reads_or_sorts_a_whole_table_whatever_its_statistics_say(
    engine: AsyncEngine, wanted: JobFilter
) -> None:
    await plant_many(engine, 3000)  # never analysed: the planner thinks of a small table
    asked: list[tuple[str, Any]] = []
    async with engine.connect() as connection:
        await status.read_by_index(connection)

        def note(_c: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> None:
            asked.append((statement, parameters))

        event.listen(engine.sync_engine, "before_cursor_execute", note)
        await status.page(connection, wanted)
        event.remove(engine.sync_engine, "before_cursor_execute", note)
        raw = (await connection.get_raw_connection()).driver_connection
        assert raw is not None
        for statement, parameters in asked:
            rows = await raw.fetch("explain " + statement, *parameters)
            plan = "\n".join(row[0] for row in rows)
            assert "Seq Scan" not in plan, plan
            assert not re.search(r"^\s*(->)?\s*(Incremental )?Sort  ", plan, re.MULTILINE), plan
    assert asked
