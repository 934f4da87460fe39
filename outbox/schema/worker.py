"""Workers that are up, and what they have done: how many jobs a minute, how long these waited and ran."""

UP = (
    """
    create table outbox.worker (
        id          uuid primary key,
        host        text not null,
        pid         integer not null,
        queues      jsonb not null,
        tasks       jsonb not null,
        lease       double precision not null,
        started_at  timestamptz not null default clock_timestamp(),
        seen_at     timestamptz not null default clock_timestamp(),
        stopping_at timestamptz
    ) with (fillfactor = 50)
    """,
    "comment on table outbox.worker is 'one row for each worker process; it says now and then that it is there'",
    *(
        f"comment on column outbox.worker.{column} is '{meaning}'"
        for column, meaning in {
            "id": "a random id for each start of a process, as in live_job.worker_id",
            "host": "where it runs",
            "pid": "its number there",
            "queues": "queue → slots",
            "tasks": "task that it knows → highest version of its payload that it reads",
            "lease": "seconds; not seen for longer than that, it is gone",
            "started_at": "when it started",
            "seen_at": "when it was last heard of",
            "stopping_at": "since when it claims no more",
        }.items()
    ),
    """
    create table outbox.statistic (
        seconds   integer not null,
        starts_at timestamptz not null,
        queue     text not null,
        task      text not null,
        outcome   text not null,
        count     bigint not null,
        waits     integer[] not null,
        runs      integer[] not null,
        primary key (seconds, starts_at, queue, task, outcome),
        constraint statistic_seconds check (seconds in (60, 600, 3600)),
        constraint statistic_outcome check (outcome in ('succeeded', 'failed', 'cancelled', 'retried', 'snoozed'))
    ) with (fillfactor = 70)
    """,
    "comment on table outbox.statistic is 'attempts that ended, as counted: by minute, ten minutes, hour'",
    *(
        f"comment on column outbox.statistic.{column} is '{meaning}'"
        for column, meaning in {
            "seconds": "60 for a minute, 600 for ten, 3600 for an hour",
            "starts_at": "when that began",
            "queue": "of the jobs",
            "task": "of the jobs",
            "outcome": "how their attempts ended",
            "count": "how many",
            "waits": "how many waited how long: element n is up to 2^(n/2) milliseconds, from 1 on",
            "runs": "how many ran how long, in the same way",
        }.items()
    ),
    """
    create function outbox.add_counts(one integer[], other integer[]) returns integer[]
    language sql immutable parallel safe as $$
        select coalesce(array_agg(coalesce(a, 0) + coalesce(b, 0) order by n), '{}')
        from unnest(one, other) with ordinality as pair (a, b, n)
    $$
    """,
    "comment on function outbox.add_counts(integer[], integer[]) is 'element by element'",
    """
    create table outbox.backlog (
        at        timestamptz not null,
        queue     text not null,
        ready     integer not null,
        scheduled integer not null,
        running   integer not null,
        waited    double precision not null,
        primary key (at, queue)
    )
    """,
    "comment on table outbox.backlog is 'how queues stood, minute by minute, as one of the workers has seen them'",
    *(
        f"comment on column outbox.backlog.{column} is '{meaning}'"
        for column, meaning in {
            "at": "the minute",
            "queue": "its name",
            "ready": "jobs that were due and waited; 100,000 may have been more",
            "scheduled": "jobs that were not due yet; 100,000 may have been more",
            "running": "jobs that workers had claimed",
            "waited": "seconds for which the oldest of those that were due had waited",
        }.items()
    ),
)

DOWN = (
    "drop table outbox.backlog",
    "drop function outbox.add_counts",
    "drop table outbox.statistic",
    "drop table outbox.worker",
)
