"""Reading jobs: one, or pages by filter, with strings that mean harm treated as strings."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from outbox import Job, State, status
from outbox.status import JobFilter
from tests.factories import KINDS, plant, plant_many

HOSTILE = ["'; drop table outbox.live_job; --", "%", "_", "\\", '"', "{a,b}", "a,b", "$1", ":id", "é" * 200, "\x01"]


async def test_a_job_is_read_wherever_it_stands(engine: AsyncEngine, session: AsyncSession) -> None:
    for kind in KINDS:
        id = await plant(engine, kind, payload={"n": 1}, tags=["t"])
        job = await status.get(session, id)
        assert job is not None
        assert (job.id, job.payload, job.tags, job.errors) == (id, {"n": 1}, ["t"], [])
        assert job.state == KINDS[kind].get("state", "pending")
        assert job.done is (kind in ("succeeded", "failed", "cancelled"))
        assert job.created_at.tzinfo is not None
        assert (job.finished_at is not None) is job.done


async def test_a_job_that_is_not_there_is_none(session: AsyncSession) -> None:
    assert await status.get(session, uuid4()) is None


async def pages(session: AsyncSession, wanted: JobFilter, limit: int) -> list[list[Job]]:
    found, before = list[list[Job]](), None
    while True:
        page = await status.page(session, wanted, limit=limit, before=before)
        found.append(page.jobs)
        if page.next is None:
            return found
        before = page.next


@pytest.mark.parametrize(("limit", "sizes"), [(3, [3, 3, 3]), (4, [4, 4, 1]), (9, [9]), (200, [9])])
async def test_pages_hold_every_job_once_newest_first(
    engine: AsyncEngine, session: AsyncSession, limit: int, sizes: list[int]
) -> None:
    ids = [await plant(engine, kind) for kind in KINDS]
    found = await pages(session, JobFilter(), limit)
    assert [len(page) for page in found] == sizes
    assert [job.id for page in found for job in page] == sorted(ids, reverse=True)


async def test_pages_stay_stable_while_jobs_come_and_finish(engine: AsyncEngine, session: AsyncSession) -> None:
    old = [await plant(engine) for _ in range(6)]
    first = await status.page(session, JobFilter(), limit=3)
    await session.rollback()
    await plant_many(engine, 5)
    second = await status.page(session, JobFilter(), limit=3, before=first.next)
    assert [job.id for job in first.jobs + second.jobs] == sorted(old, reverse=True)
    assert second.next is None


async def test_an_empty_page_is_the_end(session: AsyncSession) -> None:
    page = await status.page(session, JobFilter())
    assert (page.jobs, page.next) == ([], None)


@pytest.mark.parametrize(("asked", "got"), [(0, 1), (-5, 1), (1, 1), (200, 200), (10**9, 200)])
async def test_the_size_of_a_page_is_bounded(engine: AsyncEngine, session: AsyncSession, asked: int, got: int) -> None:
    await plant_many(engine, 201)
    assert len((await status.page(session, JobFilter(), limit=asked)).jobs) == got


async def found(session: AsyncSession, **wanted: Any) -> set[UUID]:
    return {job.id for page in await pages(session, JobFilter(**wanted), 200) for job in page}


async def test_every_filter_narrows(engine: AsyncEngine, session: AsyncSession) -> None:
    mail = await plant(engine, queue="mail", task="send", tags=["vip", "eu"])
    done = await plant(engine, "succeeded", queue="mail", task="bill", tags=["eu"])
    in_2020 = UUID(int=int(datetime(2020, 1, 1, tzinfo=UTC).timestamp() * 1000) << 80)
    old = await plant(engine, "failed", queue="slow", task="send", id=in_2020)
    assert await found(session, states=[State.PENDING]) == {mail}
    assert await found(session, states=[State.SUCCEEDED, State.FAILED]) == {done, old}
    assert await found(session, queues=["mail"]) == {mail, done}
    assert await found(session, queues=["mail", "slow"]) == {mail, done, old}
    assert await found(session, tasks=["send"]) == {mail, old}
    assert await found(session, tags=["eu"]) == {mail, done}
    assert await found(session, tags=["vip", "nobody"]) == {mail}
    assert await found(session, tags=["nobody"]) == set()
    assert await found(session, queues=["mail"], tasks=["send"], tags=["vip"], states=[State.PENDING]) == {mail}
    assert await found(session, queues=["slow"], tasks=["bill"]) == set()
    moment = datetime(2020, 1, 1, tzinfo=UTC)
    assert await found(session, created_before=moment) == set()
    assert await found(session, created_before=moment + timedelta(seconds=1)) == {old}
    assert await found(session, created_after=moment) == {mail, done, old}
    assert await found(session, created_after=moment + timedelta(seconds=1)) == {mail, done}


@pytest.mark.parametrize("said", HOSTILE, ids=ascii)
async def test_hostile_strings_are_only_strings(engine: AsyncEngine, session: AsyncSession, said: str) -> None:
    await plant(engine, queue="other", task="other", tags=["other"])
    id = await plant(engine, queue=said, task=said, tags=[said, "x"])
    assert await found(session, queues=[said]) == {id}
    assert await found(session, tasks=[said]) == {id}
    assert await found(session, tags=[said]) == {id}
    job = await status.get(session, id)
    assert job is not None
    assert (job.queue, job.task, job.tags) == (said, said, [said, "x"])


@pytest.mark.parametrize("said", ["\0", "\ud800"], ids=ascii)
async def test_strings_that_no_row_can_hold_find_nothing(session: AsyncSession, said: str) -> None:
    assert await found(session, queues=[said]) == set()
    assert await found(session, tasks=[said]) == set()
    assert await found(session, tags=[said]) == set()


async def test_the_end_of_time_is_a_time(engine: AsyncEngine, session: AsyncSession) -> None:
    id = await plant(engine)
    assert await found(session, created_before=datetime.max.replace(tzinfo=UTC)) == {id}
    assert await found(session, created_after=datetime.min.replace(tzinfo=UTC)) == {id}


UNDECODABLE = {
    "too-deep": "jsonb_build_object('n', (repeat('[', 5000) || repeat(']', 5000))::jsonb)",
    "too-many-digits": "jsonb_build_object('n', repeat('9', 5000)::numeric)",
}


@pytest.mark.parametrize("bad", UNDECODABLE)
async def test_a_row_that_cannot_be_decoded_does_not_spoil_the_page_it_is_on(
    engine: AsyncEngine, session: AsyncSession, bad: str
) -> None:
    good = [await plant(engine) for _ in range(2)]
    unlucky = await plant(engine, payload=text(UNDECODABLE[bad]))
    page = await status.page(session, JobFilter())
    assert {job.id for job in page.jobs} == {*good, unlucky}
    job = await status.get(session, unlucky)
    assert job is not None
    assert job.state is State.PENDING
