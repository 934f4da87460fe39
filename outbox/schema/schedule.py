"""Schedules, and the ticks at which they have fired: one job for each, whatever workers and clocks do."""

UP = (
    """
    create table outbox.schedule (
        name         text primary key,
        expression   text not null,
        tz           text not null,
        catch_up     text not null,
        jitter       double precision not null,
        task         text not null,
        payload      jsonb not null,
        version      smallint not null,
        queue        text not null,
        priority     smallint not null,
        max_attempts smallint,
        tags         jsonb,
        group_key    text,
        limit_key    text not null,
        tenant       text,
        moment       text,
        declared     boolean not null,
        paused_at    timestamptz,
        next_at      timestamptz,
        last_at      timestamptz,
        constraint schedule_name check (length(name) between 1 and 200),
        constraint schedule_catch_up check (catch_up in ('skip', 'latest', 'all')),
        constraint schedule_jitter check (jitter >= 0)
    )
    """,
    "comment on table outbox.schedule is 'what is to be enqueued again and again'",
    *(
        f"comment on column outbox.schedule.{column} is '{meaning}'"
        for column, meaning in {
            "name": "by which people know it",
            "expression": "when it fires, as cron writes it",
            "tz": "the time zone that the expression is meant in",
            "catch_up": "of the ticks that were missed, which are made up for: none (skip), the latest, or all",
            "jitter": "each job is put off by a random part of so many seconds",
            "task": "of the jobs that it enqueues",
            "payload": "their arguments",
            "version": "the version of these",
            "queue": "their queue",
            "priority": "their priority",
            "max_attempts": "their attempts; null: as the task says",
            "tags": "their tags",
            "group_key": "their group",
            "limit_key": "whose turns they take",
            "tenant": "whose they are",
            "moment": "the argument that gets the moment of the tick; null: none does",
            "declared": "said by code; else by a person, whom no code overrules",
            "paused_at": "since when it does not fire; null: it does",
            "next_at": "when it fires next; null: never again",
            "last_at": "the latest tick that it has fired for",
        }.items()
    ),
    "create index schedule_next on outbox.schedule (next_at) where paused_at is null",
    """
    create table outbox.tick (
        schedule text not null,
        nominal  timestamptz not null,
        job_id   uuid not null,
        fired_at timestamptz not null default clock_timestamp(),
        primary key (schedule, nominal)
    )
    """,
    "comment on table outbox.tick is 'a schedule has fired: at most once for each moment it names'",
    "comment on column outbox.tick.schedule is 'its name'",
    "comment on column outbox.tick.nominal is 'the moment that the expression names'",
    "comment on column outbox.tick.job_id is 'the job that was enqueued'",
    "comment on column outbox.tick.fired_at is 'when that was'",
    "create index tick_fired_at on outbox.tick (fired_at)",
    """
    create function outbox.moment_argument(name text, moment timestamptz) returns jsonb
    language sql stable set timezone = 'UTC' as $$
        select case when name is null then '{}' else jsonb_build_object(name, moment) end
    $$
    """,
    "comment on function outbox.moment_argument is 'the moment of a tick, as an argument; nothing where none takes it'",
)

DOWN = ("drop function outbox.moment_argument", "drop table outbox.tick", "drop table outbox.schedule")
