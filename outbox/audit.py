"""What people have done: one row each, written with what they did, and never changed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

_WRITE = text(
    """
    insert into outbox.audit (actor, tenant, action, target, detail)
    values (:actor, :tenant, :action, :target, cast(cast(:detail as text) as jsonb))
    """
)
_READ = text(
    """
    select id, at, actor, tenant, action, target, detail::text as detail from outbox.audit
    where cast(:before as bigint) is null or id < :before
    order by id desc limit :limit
    """
)

MAX_PAGE = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Deed:
    """Something that somebody did."""

    id: int
    at: datetime
    actor: str
    tenant: str | None
    action: str
    target: str
    detail: Mapping[str, Any]


async def write(
    connection: AsyncSession | AsyncConnection,
    actor: str,
    action: str,
    target: str,
    *,
    tenant: str | None = None,
    **detail: Any,
) -> None:
    """Note what is done in the caller's transaction.

    :param actor: who.
    :param target: to what: ``job 0197...``, ``queue mail``.
    :param detail: as JSON; never arguments or results of jobs.
    """
    values = {"actor": actor, "tenant": tenant, "action": action, "target": target}
    await connection.execute(_WRITE, values | {"detail": json.dumps(detail, default=str)})


async def page(
    connection: AsyncSession | AsyncConnection, *, limit: int = 50, before: int | None = None
) -> Sequence[Deed]:
    """What was done, the latest first.

    :param before: the id of the last one of the page before this one.
    """
    values = {"limit": max(1, min(limit, MAX_PAGE)), "before": before}
    return [
        Deed(**dict(row) | {"detail": json.loads(row["detail"])})
        for row in (await connection.execute(_READ, values)).mappings()
    ]
