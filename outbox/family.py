"""The relatives of a job: those that it comes after, those that come after it, theirs, and so on."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from outbox import status
from outbox.job import Job

MOST = 200
"""Jobs at most that are found."""

_RELATIVES = text(
    """
    with recursive family (id) as (
        select unnest(cast(:ids as uuid[]))
        union
        select relative.id from family
        cross join lateral (
            select after_id as id from outbox.dependency where job_id = family.id
            union all
            select job_id from outbox.dependency where after_id = family.id
        ) relative
    )
    select id from family limit :most
    """
)
_EDGES = text(
    """
    select after_id, job_id from outbox.dependency
    where job_id = any (cast(:ids as uuid[])) and after_id = any (cast(:ids as uuid[]))
    order by after_id, job_id
    """
)


@dataclass(frozen=True, slots=True)
class Family:
    """Jobs, and which comes after which.

    :ivar edges: pairs of a job and one that comes after it.
    :ivar more: whether there are more jobs than these.
    """

    jobs: Sequence[Job]
    edges: Sequence[tuple[UUID, UUID]]
    more: bool


async def family(
    connection: AsyncSession | AsyncConnection, ids: Sequence[UUID], *, tenant: str | None = None
) -> Family:
    """All jobs that these are tied to, themselves included, by their ids.

    :param tenant: whose jobs alone are seen; those of everybody unless given.
    """
    rows = await connection.execute(_RELATIVES, {"ids": [str(id) for id in ids], "most": MOST + 1})
    found = list(rows.scalars())
    jobs = [job for job in await status.several(connection, found[:MOST]) if tenant in (None, job.tenant)]
    known = sorted(job.id for job in jobs)
    edges = await connection.execute(_EDGES, {"ids": [str(id) for id in known]})
    return Family(
        sorted(jobs, key=lambda job: job.id), [(row.after_id, row.job_id) for row in edges], len(found) > MOST
    )
