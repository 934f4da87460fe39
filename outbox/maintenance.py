"""What any worker does for all: rescue the jobs of dead workers, and keep the partitions of finished jobs.

Each is one idempotent call; any number of workers may make it at the same time.
"""

import asyncpg

from outbox import events, presence, sql, statistic
from outbox.connection import Link
from outbox.job import MAX_LOST, State

RESCUE_BATCH = 500
DAYS_AHEAD = 3

_MISSING_DAYS = """
select day::date as day
from generate_series((now() at time zone 'UTC')::date, (now() at time zone 'UTC')::date + $1::integer, '1 day') day
where to_regclass('outbox.' || outbox.partition_name(day::date)) is null
"""

_OLD_PARTITIONS = """
select day
from pg_inherits join pg_class child on child.oid = inhrelid
cross join lateral to_date(right(child.relname, 8), 'YYYYMMDD') day
where inhparent = 'outbox.finished_job'::regclass and child.relname ~ '^finished_job_[0-9]{8}$'
  and day < (now() at time zone 'UTC')::date - $1::integer
"""

_PRUNE_DEFAULT = """
delete from outbox.finished_job_default
where ctid = any (array(
    select ctid from outbox.finished_job_default where finished_at < now() - make_interval(days => $1) limit 1000
))
"""

# An id tells when its job was enqueued.
_PRUNE_DEPENDENCIES = """
delete from outbox.dependency
where (job_id, after_id) in (
    select job_id, after_id from outbox.dependency old
    where job_id < outbox.first_id(now() - make_interval(days => $1))
      and not exists (select from outbox.live_job live where live.id = old.job_id offset 0)
    order by job_id limit 1000
)
"""
_PRUNE_BATCHES = """
delete from outbox.batch
where id in (select id from outbox.batch where finished_at < now() - make_interval(days => $1) limit 1000)
"""

_PRUNE_INBOX = """
delete from outbox.inbox
where (source, message_id) in (
    select source, message_id from outbox.inbox
    where accepted_at < now() - make_interval(days => $1) order by accepted_at limit 1000
)
"""

_PRUNE_TICKS = """
delete from outbox.tick
where (schedule, nominal) in (
    select schedule, nominal from outbox.tick where fired_at < now() - make_interval(days => $1) limit 1000
)
"""

# A bucket that is full again has nothing to tell.
_PRUNE_BUCKETS = "delete from outbox.job_bucket where full_at < now() - interval '1 minute'"

_PRUNE_KEYS = """
delete from outbox.held_key
where (task, key) in (select task, key from outbox.held_key where until < now() order by until limit 1000
                      for update skip locked)
"""

# Groups in which jobs are blocked by none: not by anything done here, but rows may be deleted by hand. The first job of
# each is let in anew, under the group's lock, so that to be wrong does no harm.
_FORGOTTEN_GROUPS = """
with recursive blocked as (
    (select group_key from outbox.live_job
     where group_key is not null and blocked in ('new', 'group') order by group_key limit 1)
    union all
    select (select group_key from outbox.live_job live
            where group_key is not null and blocked in ('new', 'group') and live.group_key > blocked.group_key
            order by group_key limit 1)
    from blocked where blocked.group_key is not null
)
update outbox.live_job set blocked = 'new', run_at = greatest(run_at, clock_timestamp())
where id = any (array(
    select first.id from blocked
    cross join lateral (
        select id, blocked from outbox.live_job live
        where live.group_key = blocked.group_key and blocked in ('new', 'group') order by id limit 1
    ) first
    where first.blocked = 'group' and not exists (
        select from outbox.live_job live where live.group_key = blocked.group_key and live.blocked is null
    )
))
"""


async def rescue(link: Link) -> int:
    """Give the jobs whose lease is over back to all workers, or end those that are poison; how many there were."""
    total = 0
    while await link.fetch(sql.ANY_EXPIRED):
        async with link.transaction():
            groups = [row["name"] for row in await link.fetch(sql.GROUPS_TO_RESCUE, MAX_LOST, RESCUE_BATCH)]
            rows = await link.fetch(sql.RESCUE, MAX_LOST, RESCUE_BATCH, groups)
            if groups:
                await link.fetch(sql.OPEN_GROUPS, groups)
        counts: dict[str, int] = {row["next"]: row["count"] for row in rows}
        found = sum(counts.values())
        if found:
            events.emit(events.WARNING, "jobs_rescued", count=found, failed=counts.get(State.FAILED, 0))
        total += found
        if found < RESCUE_BATCH:
            break
    return total


async def keep_partitions(link: Link, retention_days: int) -> bool:
    """Make the partitions of the coming days and drop those past retention.

    Both need a lock that no settle may wait for: it is asked for briefly, and asked for again the next time.

    :return: whether all of it could be done.
    """
    days = [row["day"] for row in await link.fetch(_MISSING_DAYS, DAYS_AHEAD)]
    old = [row["day"] for row in await link.fetch(_OLD_PARTITIONS, retention_days)]
    created = [await _briefly(link, "select outbox.add_partition($1)", day) for day in days]
    dropped = [await _briefly(link, "select outbox.drop_partition($1)", day) for day in old]
    if any(created + dropped):
        events.emit(events.INFO, "partitions_changed", created=sum(created), dropped=sum(dropped))
    await link.fetch(_PRUNE_DEFAULT, retention_days)
    await link.fetch(_PRUNE_KEYS)
    await link.fetch(_PRUNE_BUCKETS)
    await link.fetch(_PRUNE_TICKS, retention_days)
    await link.fetch(_PRUNE_INBOX, retention_days)
    await link.fetch(_PRUNE_BATCHES, retention_days)
    await link.fetch(_PRUNE_DEPENDENCIES, retention_days)
    await statistic.prune(link)
    await presence.prune(link)
    return all(created + dropped)


async def mend_groups(link: Link) -> None:
    """Let a job run in every group that has blocked jobs and none that blocks them."""
    await link.fetch(_FORGOTTEN_GROUPS)


async def _briefly(link: Link, statement: str, *args: object) -> bool:
    try:
        async with link.transaction():
            await link.fetch("set local lock_timeout = '100ms'")
            await link.fetch(statement, *args)
    except asyncpg.LockNotAvailableError:
        events.emit(events.DEBUG, "partition_busy", statement=statement)
        return False
    return True
