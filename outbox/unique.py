"""Jobs with a key: of the live jobs of a task one has it, whoever enqueues it and however many at the same time.

A unique index decides. Whoever comes second waits for the transaction of the first: if that commits, it learns whose
the key is; if it is rolled back, the key is its own. Nothing here raises an error in the database, so the caller's
transaction stays good whatever is found.
"""

from collections.abc import Iterable, Sequence

from sqlalchemy import Connection, text

from outbox import sql
from outbox.backoff import seconds
from outbox.errors import EnqueueFailed
from outbox.newjob import NewJob, columns

TRIES = 20
"""How often a key may be found taken and a moment later free, before something must be wrong."""

_ENQUEUE_UNIQUE = text(sql.ENQUEUE_UNIQUE)
_ENQUEUE_OR_REPLACE = text(sql.ENQUEUE_OR_REPLACE)
_RESEAL = text(sql.RESEAL)
_FIND_KEYS = text(sql.FIND_KEYS)
_FIND_HELD_KEYS = text(sql.FIND_HELD_KEYS)
_HOLD_KEYS = text(sql.HOLD_KEYS)
_HAND_KEYS_OVER = text(sql.HAND_KEYS_OVER)

Key = tuple[str, str | None]


def write(connection: Connection, jobs: Sequence[NewJob]) -> list[NewJob]:
    """Write the jobs whose keys are free, and give the others the ids of those that have theirs.

    :return: the jobs that were to be rejected when their key was taken, and were.
    """
    leaders = _leaders(jobs)
    existing = _hold(connection, [job for job in leaders.values() if job.options.unique_for is not None])
    open_ = {key: job for key, job in leaders.items() if key not in existing}
    existing |= _insert(connection, open_)
    late = {key: id for key, id in existing.items() if key in open_ and open_[key].options.unique_for is not None}
    if late:
        connection.execute(_HAND_KEYS_OVER, _pairs(late) | {"id": list(late.values())})
    for job in jobs:
        key = _key(job)
        job.is_new = leaders[key] is job and key not in existing
        job.id = existing.get(key, leaders[key].id)  # type: ignore[assignment]
    return [job for job in jobs if not job.is_new and job.options.on_conflict == "reject"]


def _leaders(jobs: Iterable[NewJob]) -> dict[Key, NewJob]:
    """Of the jobs of one flush with the same key the first; a later one that replaces it gives it what it brings."""
    leaders: dict[Key, NewJob] = {}
    for job in jobs:
        leader = leaders.setdefault(_key(job), job)
        if leader is not job and job.options.on_conflict == "replace":
            leader.takes_on(job)
    return leaders


def _hold(connection: Connection, jobs: Sequence[NewJob]) -> dict[Key, object]:
    """Take keys for their period; the ids of the jobs that have those which are taken."""
    if not jobs:
        return {}
    rows = connection.execute(_FIND_HELD_KEYS, _pairs(map(_key, jobs)))
    existing: dict[Key, object] = {(row.task, row.key): row.job_id for row in rows}
    free = {_key(job): job for job in jobs if _key(job) not in existing}
    if free:
        periods = [seconds(job.options.unique_for or 0) for job in free.values()]
        values = _pairs(free) | {"id": [str(job.id) for job in free.values()], "seconds": periods}
        rows = connection.execute(_HOLD_KEYS, values)
        existing |= {(row.task, row.key): row.job_id for row in rows if row.job_id != free[row.task, row.key].id}
    return existing


def _insert(connection: Connection, jobs: dict[Key, NewJob]) -> dict[Key, object]:
    """Write the jobs; the ids of those that live, for the keys that are taken."""
    existing: dict[Key, object] = {}
    for _ in range(TRIES):
        jobs = {key: job for key, job in jobs.items() if key not in existing}
        replacing = [job for job in jobs.values() if job.options.on_conflict == "replace"]
        others = [job for job in jobs.values() if job.options.on_conflict != "replace"]
        written: set[Key] = set()
        if others:
            ids = {row.id for row in connection.execute(_ENQUEUE_UNIQUE, columns(others))}
            written |= {_key(job) for job in others if job.id in ids}
        if replacing:
            for row in connection.execute(_ENQUEUE_OR_REPLACE, columns(replacing)):
                written.add((row.task, row.key))
                job = jobs[row.task, row.key]
                if job.id != row.id:
                    existing[row.task, row.key] = row.id
                    if job.is_sealed:
                        connection.execute(_RESEAL, {"id": row.id, "payload": job.payload_for(row.id)})
        jobs = {key: job for key, job in jobs.items() if key not in written}
        if not jobs:
            return existing
        # A statement of its own sees what was committed while the one before waited. A job that has ended since then
        # is not found, and its key is free: once more.
        for row in connection.execute(_FIND_KEYS, _pairs(jobs)):
            existing[row.task, row.key] = row.id
        if jobs.keys() <= existing.keys():
            return existing
    raise EnqueueFailed(f"the keys {sorted(key or '' for _, key in jobs)[:5]} are taken and free in turns; try again")


def _pairs(keys: Iterable[Key]) -> dict[str, list[str | None]]:
    both = list(keys)
    return {"task": [task for task, _ in both], "key": [key for _, key in both]}


def _key(job: NewJob) -> Key:
    return job.task, job.options.key
