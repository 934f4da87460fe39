"""Limits: how many jobs run at once, or start in a time, in all workers together.

A limit holds for the jobs of a task, or for those that come through a queue; or for the jobs of each ``limit_key``
within it apart, a tenant's say. Code declares limits (``@outbox.task(limit=...)``, ``Outbox.limit_queue``), and every
worker writes those of its code when it starts; what a person says (``put``) stands above that until it is removed.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from outbox.backoff import seconds
from outbox.connection import Link
from outbox.newjob import MAX_NAME, is_name

Scope = Literal["task", "queue"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """How many jobs at most; at least one of both must be said.

    :param concurrency: jobs that run at once. 0 stops them all.
    :param rate: jobs that start in ``per``; above 0. They are spread evenly.
    :param per: seconds or a timedelta.
    :param burst: jobs that may start at once when none has started for a while. 1 to 1,000,000.
    """

    concurrency: int | None = None
    rate: float | None = None
    per: float | timedelta = 1.0
    burst: int = 1

    def __post_init__(self) -> None:
        if self.concurrency is None and self.rate is None:
            raise ValueError("limit: say concurrency= or rate=")
        if self.concurrency is not None and not 0 <= self.concurrency <= 1_000_000:
            raise ValueError(f"limit: concurrency={self.concurrency}; must be 0 to 1,000,000")
        if self.rate is not None and not 0 < self.rate <= 1_000_000:
            raise ValueError(f"limit: rate={self.rate}; must be above 0 and at most 1,000,000")
        if not seconds(self.per):
            raise ValueError(f"limit: per={self.per}; must be above 0")
        if not 1 <= self.burst <= 1_000_000:
            raise ValueError(f"limit: burst={self.burst}; must be 1 to 1,000,000")
        if self.burst > 1 and self.rate is None:
            raise ValueError("limit: burst= says how a rate begins: give rate= too")

    @property
    def rate_per_second(self) -> float | None:
        """Jobs that start in a second."""
        return None if self.rate is None else self.rate / seconds(self.per)


@dataclass(frozen=True, slots=True)
class Rule:
    """A limit and what it holds for.

    :ivar per_key: whether for the jobs of each ``limit_key`` apart.
    :ivar declared: whether code has said so, or a person.
    """

    scope: Scope
    name: str
    per_key: bool
    limit: Limit
    declared: bool = True


_PUT = text(
    """
    insert into outbox.job_limit (scope, name, per_key, concurrency, rate, burst)
    values (:scope, :name, :per_key, :concurrency, :rate, :burst)
    on conflict (scope, name, per_key) do update
    set concurrency = excluded.concurrency, rate = excluded.rate, burst = excluded.burst, declared = false
    """
)
_MARK = text("select outbox.mark_limited(:scope, :name)")
_REMOVE = text("delete from outbox.job_limit where scope = :scope and name = :name and per_key = :per_key")
_ALL = text(
    """
    select scope, name, per_key, concurrency, rate, burst, declared
    from outbox.job_limit order by scope, name, per_key
    """
)

_WITHDRAW = """
delete from outbox.job_limit known
using unnest($1::text[], $2::text[]) as spoken_for (scope, name)
where declared and known.scope = spoken_for.scope and known.name = spoken_for.name
  and (known.scope, known.name, known.per_key) not in (select * from unnest($3::text[], $4::text[], $5::boolean[]))
"""
_DECLARE = """
insert into outbox.job_limit (scope, name, per_key, concurrency, rate, burst, declared)
select scope, name, per_key, concurrency, rate, burst, true
from unnest($1::text[], $2::text[], $3::boolean[], $4::integer[], $5::double precision[], $6::integer[])
    as given (scope, name, per_key, concurrency, rate, burst)
order by scope, name, per_key
on conflict (scope, name, per_key) do update
set concurrency = excluded.concurrency, rate = excluded.rate, burst = excluded.burst
where job_limit.declared and (job_limit.concurrency, job_limit.rate, job_limit.burst)
    is distinct from (excluded.concurrency, excluded.rate, excluded.burst)
returning scope, name, xmax = 0 as is_new
"""


async def put(
    connection: AsyncSession | AsyncConnection, scope: Scope, name: str, limit: Limit, *, per_key: bool = False
) -> None:
    """Set a limit, whatever code declares, in the caller's transaction.

    It holds for the jobs that wait already, and for those that run. Only jobs whose transaction is open at this moment
    may slip by, unless there was a limit of the task or the queue before.
    """
    if scope not in ("task", "queue"):
        raise ValueError(f"scope: {scope!r}; must be 'task' or 'queue'")
    if not is_name(name):
        raise ValueError(f"name: must be 1 to {MAX_NAME} printable characters")
    values = {"concurrency": limit.concurrency, "rate": limit.rate_per_second, "burst": limit.burst}
    await connection.execute(_PUT, {"scope": scope, "name": name, "per_key": per_key, **values})
    await connection.execute(_MARK, {"scope": scope, "name": name})


async def remove(connection: AsyncSession | AsyncConnection, scope: Scope, name: str, *, per_key: bool = False) -> None:
    """Remove a limit. One that code declares is back when the next worker starts."""
    await connection.execute(_REMOVE, {"scope": scope, "name": name, "per_key": per_key})


async def rules(connection: AsyncSession | AsyncConnection) -> list[Rule]:
    """All limits, by name."""
    return [
        Rule(
            row.scope,
            row.name,
            row.per_key,
            Limit(concurrency=row.concurrency, rate=row.rate, burst=row.burst),
            row.declared,
        )
        for row in await connection.execute(_ALL)
    ]


async def declare(link: Link, known: Iterable[tuple[Scope, str]], declared: Iterable[Rule]) -> None:
    """Write what the code of a worker declares, and remove what it declared once and does not any more.

    :param known: the tasks and queues that this code speaks for.
    """
    spoken_for, given = list(known), list(declared)
    keys = ([rule.scope for rule in given], [rule.name for rule in given], [rule.per_key for rule in given])
    async with link.transaction():
        await link.fetch(_WITHDRAW, [scope for scope, _ in spoken_for], [name for _, name in spoken_for], *keys)
        rows = await link.fetch(
            _DECLARE,
            *keys,
            [rule.limit.concurrency for rule in given],
            [rule.limit.rate_per_second for rule in given],
            [rule.limit.burst for rule in given],
        )
        for row in rows:
            if row["is_new"]:
                await link.fetch("select outbox.mark_limited($1, $2)", row["scope"], row["name"])
