"""Workers that are up: each says so with every heartbeat; what it does is read from the jobs that it has claimed."""

import json
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from outbox.connection import Link

_APPEAR = """
insert into outbox.worker as known (id, host, pid, queues, tasks, lease, stopping_at)
values ($1, $2, $3, $4::text::jsonb, $5::text::jsonb, $6, case when $7 then clock_timestamp() end)
on conflict (id) do update set
    seen_at = clock_timestamp(), stopping_at = coalesce(known.stopping_at, excluded.stopping_at)
"""
_LEAVE = "delete from outbox.worker where id = $1"
_PRUNE = "delete from outbox.worker where seen_at < now() - interval '1 day'"

_ALL = text(
    """
    select id, host, pid, queues::text as queues, tasks::text as tasks, started_at, seen_at, stopping_at,
           seen_at > clock_timestamp() - make_interval(secs => lease) as alive,
           coalesce(running.count, 0)::integer as running
    from outbox.worker
    left join (
        select worker_id, count(*) from outbox.live_job where lease_until is not null group by worker_id
    ) running on running.worker_id = worker.id
    order by host, pid, id
    """
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRow:
    """A worker process as the others see it.

    :ivar queues: queue → slots.
    :ivar tasks: task that it knows → highest version of its payload that it reads.
    :ivar alive: whether it was heard of within its lease.
    :ivar running: how many jobs it has claimed just now, waiting for a slot or running.
    """

    id: UUID
    host: str
    pid: int
    queues: Mapping[str, int]
    tasks: Mapping[str, int]
    started_at: datetime
    seen_at: datetime
    stopping_at: datetime | None
    alive: bool
    running: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Presence:
    """What a worker says of itself."""

    id: UUID
    queues: Mapping[str, int]
    tasks: Mapping[str, int]
    lease: float

    async def appear(self, link: Link, *, stopping: bool = False) -> None:
        """Say that it is there."""
        queues, tasks = json.dumps(dict(self.queues)), json.dumps(dict(self.tasks))
        await link.fetch(_APPEAR, self.id, socket.gethostname(), os.getpid(), queues, tasks, self.lease, stopping)

    async def leave(self, link: Link) -> None:
        """Say that it is gone."""
        await link.fetch(_LEAVE, self.id)


async def prune(link: Link) -> None:
    """Forget workers that have not been heard of for a day."""
    await link.fetch(_PRUNE)


async def workers(connection: AsyncSession | AsyncConnection) -> Sequence[WorkerRow]:
    """All workers that have been heard of lately, by host."""
    return [
        WorkerRow(**dict(row) | {"queues": json.loads(row["queues"]), "tasks": json.loads(row["tasks"])})
        for row in (await connection.execute(_ALL)).mappings()
    ]
