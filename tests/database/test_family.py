"""All relatives of a job are found, through all generations and in both directions, of one tenant, and not for ever."""

from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from outbox import Outbox
from outbox.family import MOST, Family, family
from outbox.newjob import NewJob

Sessions = async_sessionmaker[AsyncSession]

outbox = Outbox()


@outbox.task()
async def noop(n: int = 0) -> int:
    return n


async def write(sessions: Sessions, *jobs: NewJob) -> None:
    async with sessions.begin() as session:
        await outbox.enqueue_many(session, jobs)


async def find(sessions: Sessions, *ids: UUID, tenant: str | None = None) -> Family:
    async with sessions() as session:
        return await family(session, ids, tenant=tenant)


async def test_all_generations_are_found_from_anywhere(sessions: Sessions) -> None:
    first, second = noop.job(1), noop.job(2)
    middle = noop.options(after=[first, second]).job(3)
    last, other = noop.options(after=[middle]).job(4), noop.job(5)
    await write(sessions, first, second, middle, last, other)
    edges = sorted([(first.id, middle.id), (second.id, middle.id), (middle.id, last.id)])
    for start in (first, second, middle, last):
        found = await find(sessions, start.id)
        assert [job.id for job in found.jobs] == sorted(each.id for each in (first, second, middle, last))
        assert (list(found.edges), found.more) == (edges, False)
    alone = await find(sessions, other.id)
    assert ([job.id for job in alone.jobs], list(alone.edges)) == ([other.id], [])


async def test_only_a_tenants_own_are_found(sessions: Sessions) -> None:
    mine = noop.options(tenant="mine").job()
    theirs = noop.options(after=[mine], tenant="theirs").job()
    await write(sessions, mine, theirs)
    found = await find(sessions, mine.id, tenant="mine")
    assert ([job.id for job in found.jobs], list(found.edges)) == ([mine.id], [])


async def test_a_large_family_is_cut(sessions: Sessions) -> None:
    first = noop.job()
    await write(sessions, first, *(noop.options(after=[first]).job(n) for n in range(MOST + 50)))
    found = await find(sessions, first.id)
    assert (len(found.jobs), found.more) == (MOST, True)
