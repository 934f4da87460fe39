"""Limits: how many jobs of a task or a queue, or of a key within it, run at once in all workers, or start in a time.

A limited job stands outside of the index of the plain claim (see ``turns``). What counts against a limit is rows that
run, so a dead worker gives its places back with its leases.
"""

UP = (
    """
    create table outbox.job_limit (
        scope       text not null,
        name        text not null,
        per_key     boolean not null,
        concurrency integer,
        rate        double precision,
        burst       integer not null default 1,
        declared    boolean not null default false,
        primary key (scope, name, per_key),
        constraint job_limit_scope check (scope in ('task', 'queue')),
        constraint job_limit_name check (length(name) between 1 and 200),
        constraint job_limit_numbers check (concurrency >= 0 and rate > 0 and burst >= 1),
        constraint job_limit_is_one check (concurrency is not null or rate is not null)
    )
    """,
    "comment on table outbox.job_limit is 'how many jobs run at once, or start in a time, in all workers together'",
    "comment on column outbox.job_limit.scope is 'task or queue'",
    "comment on column outbox.job_limit.name is 'of the task or the queue'",
    "comment on column outbox.job_limit.per_key is 'whether it holds for the jobs of each limit_key apart'",
    "comment on column outbox.job_limit.concurrency is 'jobs that run at once; null: any number'",
    "comment on column outbox.job_limit.rate is 'jobs that start in a second; null: any number'",
    "comment on column outbox.job_limit.burst is 'jobs that may start at once after a pause'",
    "comment on column outbox.job_limit.declared is 'said by code; else by a person, whom no code overrules'",
    """
    create table outbox.job_bucket (
        scope   text not null,
        name    text not null,
        per_key boolean not null,
        key     text not null,
        full_at timestamptz not null,
        primary key (scope, name, per_key, key)
    ) with (fillfactor = 50)
    """,
    "comment on table outbox.job_bucket is 'the token buckets of limits with a rate; one that is full has no row'",
    "comment on column outbox.job_bucket.scope is 'as in job_limit'",
    "comment on column outbox.job_bucket.name is 'as in job_limit'",
    "comment on column outbox.job_bucket.per_key is 'as in job_limit'",
    "comment on column outbox.job_bucket.key is 'the limit_key; empty where the limit is not per key'",
    "comment on column outbox.job_bucket.full_at is 'when all of its tokens will be there again'",
    """
    create index live_job_limited on outbox.live_job (queue, task, limit_key, priority, run_at, id)
        where state = 'pending' and blocked is null and limited
    """,
    # What runs under a limit. Not ``state = 'running'``: see live_job_lease_until.
    """
    create index live_job_of_task on outbox.live_job (task, limit_key) where lease_until is not null and limited
    """,
    """
    create index live_job_of_queue on outbox.live_job (queue, limit_key) where lease_until is not null and limited
    """,
    "alter table outbox.live_job add constraint live_job_limit_key_length check (length(limit_key) <= 200)",
    # How many more jobs a limit lets start now; and if there is no token, when there will be one. The limit is then the
    # caller's until its transaction ends; while another one has it, nothing can be had. What runs is counted after the
    # lock was taken: each statement of a function sees what has been committed by then.
    """
    create function outbox.limit_room(
        scope text, name text, per_key boolean, key text, out room integer, out again double precision
    ) language plpgsql set enable_seqscan = off set enable_bitmapscan = off as $$
    declare
        rule outbox.job_limit;
        full_at timestamptz;
        missing double precision;
        tokens double precision;
    begin
        select * into rule from outbox.job_limit known
        where known.scope = limit_room.scope and known.name = limit_room.name and known.per_key = limit_room.per_key;
        if not found then
            return;
        end if;
        if not pg_try_advisory_xact_lock(1869968483, hashtext(concat_ws(E'\\x1f', scope, name, per_key, key)) & 2047)
        then
            room := 0;
            return;
        end if;
        if rule.concurrency is not null then
            if scope = 'task' and per_key then
                select count(*) into room from outbox.live_job live
                where live.lease_until is not null and live.limited
                  and live.task = limit_room.name and live.limit_key = limit_room.key;
            elsif scope = 'task' then
                select count(*) into room from outbox.live_job live
                where live.lease_until is not null and live.limited and live.task = limit_room.name;
            elsif per_key then
                select count(*) into room from outbox.live_job live
                where live.lease_until is not null and live.limited
                  and live.queue = limit_room.name and live.limit_key = limit_room.key;
            else
                select count(*) into room from outbox.live_job live
                where live.lease_until is not null and live.limited and live.queue = limit_room.name;
            end if;
            room := greatest(0, rule.concurrency - room);
        end if;
        if rule.rate is not null then
            select bucket.full_at into full_at from outbox.job_bucket bucket
            where bucket.scope = limit_room.scope and bucket.name = limit_room.name
              and bucket.per_key = limit_room.per_key and bucket.key = limit_room.key;
            missing := greatest(0, coalesce(extract(epoch from full_at - clock_timestamp()), 0)) * rule.rate;
            tokens := rule.burst - missing + 1e-6;
            room := least(room, floor(tokens));
            if tokens < 1 then
                again := (1 - tokens) / rule.rate;
            end if;
        end if;
    end
    $$
    """,
    "comment on function outbox.limit_room is 'how many more jobs may start now; locks the limit; null: any number'",
    """
    create function outbox.mark_limited(scope text, name text) returns void language sql as $$
        update outbox.live_job set limited = true
        where id = any (array(
            select id from outbox.live_job live
            where not live.limited
              and mark_limited.name = case mark_limited.scope when 'task' then live.task else live.queue end
            for update skip locked
        ))
    $$
    """,
    "comment on function outbox.mark_limited is 'puts the jobs that are there under a limit that is new'",
)

DOWN = (
    "drop function outbox.mark_limited",
    "drop function outbox.limit_room",
    "alter table outbox.live_job drop constraint live_job_limit_key_length",
    "drop index outbox.live_job_of_queue",
    "drop index outbox.live_job_of_task",
    "drop index outbox.live_job_limited",
    "drop table outbox.job_bucket",
    "drop table outbox.job_limit",
)
