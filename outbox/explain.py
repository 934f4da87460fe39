"""Why does this job not run? Answered from the conditions under which jobs are claimed, so that it stays true."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from outbox import sql, status
from outbox.errors import JobNotFound
from outbox.job import MAX_LOST, TERMINAL, Job

MOST = 10_000
"""Jobs at most that are counted before one; beyond it is only known that there are more."""

BLOCKERS = 10

Code = Literal[
    "ended",
    "running",
    "after_others",
    "behind_in_group",
    "scheduled",
    "queue_paused",
    "limit_reached",
    "no_worker_for_queue",
    "no_worker_for_task",
    "no_worker_for_version",
    "in_line",
]

_CONDITIONS = text(
    f"""
    select {", ".join(f"{condition} as {name}" for name, condition in sql.CLAIMABLE.items())},
           extract(epoch from live.run_at - now())::double precision as seconds,
           exists (select from outbox.queue where name = live.queue and paused_at is not null) as paused
    from outbox.live_job live where live.id = :id
    """
)
_BEFORE = text("select after_id from outbox.dependency where job_id = :id and not met order by position limit :most")
_WORKERS = text(
    """
    select queues ? :queue as serves, tasks ? :task as knows,
           (tasks ->> cast(:task as text))::integer >= :version as reads
    from outbox.worker
    where seen_at > clock_timestamp() - make_interval(secs => lease) and stopping_at is null
    """
)
_ROOMS = text(
    """
    select rule.scope, rule.name, rule.per_key, rule.concurrency, rule.rate, given.room, given.again
    from outbox.job_limit rule
    cross join lateral outbox.limit_room(
        rule.scope, rule.name, rule.per_key, case when rule.per_key then cast(:key as text) else '' end
    ) given
    where (rule.scope, rule.name) in (('task', cast(:task as text)), ('queue', cast(:queue as text)))
    order by rule.scope, rule.name, rule.per_key
    """
)
_AHEAD = text(
    """
    select count(*)::integer from (
        select from outbox.live_job live
        where live.state = 'pending' and live.blocked is null and live.limited = :limited and live.queue = :queue
          and live.run_at <= now()
          and (live.priority > :priority
               or live.priority = :priority and (live.run_at, live.id) < (:run_at, cast(:id as uuid)))
        limit :most
    ) ahead
    """
)
_PACE = text(
    """
    select sum(count)::double precision / 300 as pace from outbox.statistic
    where seconds = 60 and starts_at > now() - interval '5 minutes' and queue = :queue
    """
)


@dataclass(frozen=True, slots=True)
class Reason:
    """One thing that keeps a job from running now.

    :ivar code: for programs.
    :ivar text: for people: what it is, and what to do where something can be done.
    :ivar jobs: the jobs that it waits for, ten at most.
    """

    code: Code
    text: str
    jobs: Sequence[UUID] = ()


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a job does not run, the reason that holds longest first.

    :ivar ahead: how many jobs of its queue are claimed before it; None where that says nothing. 10,000 may be more.
    :ivar seconds: until it is its turn at the pace of the last five minutes; None where nobody can tell.
    """

    job: Job
    reasons: Sequence[Reason]
    ahead: int | None = None
    seconds: float | None = None

    @property
    def ready(self) -> bool:
        """Whether the next claim of a worker with a free slot may take it."""
        return self.reasons[0].code == "in_line"


async def explain(connection: AsyncSession, id: UUID, *, tenant: str | None = None) -> Explanation:
    """Say why the job does not run.

    :param tenant: whose jobs alone are seen; those of everybody unless given.
    :raises JobNotFound: if there is no such job.
    """
    job = await status.get(connection, id, tenant=tenant)
    if job is None:
        raise JobNotFound(id)
    row = (await connection.execute(_CONDITIONS, {"id": id})).mappings().first()
    if row is None or job.state in TERMINAL:
        return Explanation(job, [Reason("ended", f"It has ended: {job.state}.")])
    if not row["waits"]:
        return Explanation(job, [Reason("running", _running(job))])
    reasons = [
        *await _blocked(connection, job, row),
        *_not_due(row),
        *_paused(job, row),
        *await _unserved(connection, job),
    ]
    if not row["unlimited"]:
        reasons += await _limited(connection, job)
    if reasons:
        return Explanation(job, reasons)
    ahead = await _ahead(connection, job)
    pace = (await connection.execute(_PACE, {"queue": job.queue})).scalar()
    seconds = ahead / pace if pace and ahead < MOST else None
    return Explanation(job, [Reason("in_line", _in_line(job, ahead, seconds))], ahead, seconds)


def _running(job: Job) -> str:
    since = "" if job.started_at is None else f" since {job.started_at:%Y-%m-%d %H:%M:%S} UTC"
    asked = "; it was asked to stop" if job.cancel_requested_at is not None else ""
    return f"It runs{since}, in worker {job.worker_id}: attempt {job.attempt + 1}{asked}."


async def _blocked(connection: AsyncSession | AsyncConnection, job: Job, row: Mapping[Any, Any]) -> list[Reason]:
    if row["unblocked"]:
        return []
    if job.blocked == "after":
        before = list((await connection.execute(_BEFORE, {"id": job.id, "most": BLOCKERS})).scalars())
        return [Reason("after_others", "It comes after other jobs that have not ended yet.", before)]
    blocker = await status.blocker(connection, job)
    if blocker is None:
        said = f"A worker lets it into its group {job.group_key!r} with its next claim, or while it is due later, then."
        return [Reason("behind_in_group", said)]
    return [
        Reason("behind_in_group", f"Its group {job.group_key!r} runs in order, and another is before it.", [blocker])
    ]


def _not_due(row: Mapping[Any, Any]) -> list[Reason]:
    if row["due"]:
        return []
    return [Reason("scheduled", f"It is due in {row['seconds']:,.0f} s; 'run now' makes it due.")]


def _paused(job: Job, row: Mapping[Any, Any]) -> list[Reason]:
    return [Reason("queue_paused", f"Queue {job.queue!r} is paused; resume it.")] if row["paused"] else []


async def _unserved(connection: AsyncSession | AsyncConnection, job: Job) -> list[Reason]:
    values = {"queue": job.queue, "task": job.task, "version": job.version}
    workers = (await connection.execute(_WORKERS, values)).all()
    serving = [each for each in workers if each.serves]
    if not serving:
        there = f"{len(workers)} are up, none of them for it" if workers else "none is up at all"
        return [
            Reason(
                "no_worker_for_queue", f"No worker serves queue {job.queue!r}: {there}. Start one with -q {job.queue}."
            )
        ]
    if not any(each.knows for each in serving):
        said = (
            f"No worker that serves queue {job.queue!r} knows the task {job.task!r}: deploy the code that declares it."
        )
        return [Reason("no_worker_for_task", said)]
    if not any(each.reads for each in serving):
        said = f"Its arguments have version {job.version}, newer than any worker reads: deploy the newer code."
        return [Reason("no_worker_for_version", said)]
    return []


async def _limited(connection: AsyncSession, job: Job) -> list[Reason]:
    values = {"task": job.task, "queue": job.queue, "key": job.limit_key}
    # What is looked at is locked; taken back, it is nobody's again.
    nested = await connection.begin_nested()
    rows = (await connection.execute(_ROOMS, values)).all()
    await nested.rollback()
    return [Reason("limit_reached", _limit(row, job)) for row in rows if row.room is not None and row.room <= 0]


def _limit(row: Any, job: Job) -> str:
    whose = f"{row.scope} {row.name!r}" + (f", key {job.limit_key!r}" if row.per_key else "")
    if row.again is not None:
        return f"The limit of {whose} lets the next job start in {row.again:,.1f} s."
    return f"The limit of {whose} is reached: {row.concurrency} at once."


async def _ahead(connection: AsyncSession | AsyncConnection, job: Job) -> int:
    values = {
        "limited": job.limited,
        "queue": job.queue,
        "priority": job.priority,
        "run_at": job.run_at,
        "id": job.id,
        "most": MOST,
    }
    count: int = (await connection.execute(_AHEAD, values)).scalar_one()
    return count


def _in_line(job: Job, ahead: int, seconds: float | None) -> str:
    if not ahead:
        said = "It is next: a worker with a free slot takes it with its next claim."
    else:
        more = "or more " if ahead >= MOST else ""
        when = "" if seconds is None else f", about {seconds:,.0f} s at the pace of the last five minutes"
        said = f"{ahead:,} {more}jobs of queue {job.queue!r} are claimed before it{when}."
    if job.lost >= MAX_LOST - 1:
        said += " It has lost two workers, so a worker takes only one such job at a time."
    return said
