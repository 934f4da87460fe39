"""Batches and flows: what follows when jobs end, in the same transaction in which they do.

Every way in which a job can end puts a row into ``finished_job``, so a trigger of that table is the one place. It
counts the jobs of batches and enqueues what a batch that is through calls for; it opens the jobs that came after
others, or cancels them where those have not succeeded. It runs once for a statement that ends hundreds of jobs.
"""

KEPT = """
                id, task, queue, priority, run_at, payload, attempt, max_attempts, lost, fence, worker_id, created_at,
                started_at, cancel_requested_at, progress, tags, key, version, checkpoint, group_key, passable, limited,
                limit_key, tenant, batch_id, followed"""


def cancel_batch(kept: str) -> str:
    """The same as cancelling each of its jobs, as one; what they keep is as the version says."""
    return f"""
    create or replace function outbox.cancel_batch(wanted uuid) returns void
    language plpgsql set enable_seqscan = off set enable_bitmapscan = off as $$
    declare
        groups text[];
    begin
        groups := array(
            select distinct group_key from outbox.live_job
            where batch_id = wanted and group_key is not null
        );
        perform outbox.lock_groups(groups) where cardinality(groups) > 0;
        -- All of its rows or none: whoever holds some while it waits for others may wait in a circle.
        for round in 1 .. 500 loop
            begin
                perform from outbox.live_job where batch_id = wanted order by live_job.id for update nowait;
                exit;
            exception when lock_not_available then
                if round = 500 then
                    raise exception 'outbox: jobs of the batch are being settled all the time; try again'
                        using errcode = 'lock_not_available';
                end if;
                perform pg_sleep(0.01);
            end;
        end loop;
        update outbox.live_job set cancel_requested_at = coalesce(cancel_requested_at, clock_timestamp())
        where batch_id = wanted and state <> 'pending';
        with gone as (
            delete from outbox.live_job where batch_id = wanted and state = 'pending' returning *
        )
        insert into outbox.finished_job ({kept}, state, errors)
        select {kept.replace("cancel_requested_at", "clock_timestamp()")},
            'cancelled', errors
        from gone;
        perform outbox.open_groups(groups) where cardinality(groups) > 0;
    end
    $$
    """


def call_back(*, headers: bool = False) -> str:
    """What is enqueued when a batch is through. The argument of that name gets its counts."""
    more, said, typed = (", headers", ", call.headers", ", headers jsonb") if headers else ("", "", "")
    return f"""
    create or replace function outbox.call_back(batch outbox.batch) returns void language sql as $$
        insert into outbox.live_job (
            id, task, queue, payload, version, priority, max_attempts, tags, group_key, blocked, limit_key, tenant,
            limited{more}
        )
        select call.id, call.task, call.queue,
               call.payload || jsonb_build_object(call.argument, jsonb_build_object(
                   'id', (batch).id, 'name', (batch).name, 'total', (batch).total, 'succeeded', (batch).succeeded,
                   'failed', (batch).failed, 'cancelled', (batch).cancelled)),
               call.version, call.priority, call.max_attempts, call.tags, call.group_key,
               case when call.group_key is not null then 'new' end, call.limit_key, (batch).tenant,
               call.task = any (array(select name from outbox.job_limit where scope = 'task'))
                   or call.queue = any (array(select name from outbox.job_limit where scope = 'queue')){said}
        from jsonb_to_recordset((batch).callbacks) as call (
            outcome text, id uuid, task text, queue text, payload jsonb, version smallint, argument text,
            priority smallint, max_attempts smallint, tags jsonb, group_key text, limit_key text{typed}
        )
        where call.outcome = 'complete'
           or call.outcome = case when (batch).succeeded = (batch).total then 'success' else 'failure' end
    $$
    """


def job_ended(kept: str) -> str:
    """What follows when jobs have ended, whatever has ended them."""
    return f"""
    create or replace function outbox.job_ended() returns trigger
    language plpgsql set enable_seqscan = off set enable_bitmapscan = off as $$
    declare
        waiting uuid[];
        batch outbox.batch;
    begin
        if exists (select from ended where followed) then
            select array_agg(distinct job_id) into waiting from outbox.dependency
            where after_id = any (array(select id from ended where followed));
            -- Whoever ends another one that they wait for has to wait here, and then sees what was done.
            perform from outbox.live_job where id = any (waiting) order by id for update;
            update outbox.dependency set met = true
            from ended
            where dependency.after_id = ended.id and ended.followed and (ended.state = 'succeeded' or anyway);
            with hopeless as (
                select distinct on (dependency.job_id) dependency.job_id, ended.id as after_id, ended.state as outcome
                from ended join outbox.dependency on dependency.after_id = ended.id
                where ended.followed and not dependency.met
            ), gone as (
                delete from outbox.live_job where id = any (array(select job_id from hopeless)) and blocked = 'after'
                returning *
            )
            insert into outbox.finished_job ({kept}, state, errors)
            select {kept},
                'cancelled', outbox.append_error(errors, jsonb_build_object(
                    'type', 'outbox.PredecessorFailed', 'attempt', attempt, 'fence', fence, 'at', clock_timestamp(),
                    'worker_id', null, 'traceback', '',
                    'message', 'job ' || after_id || ', which this one was to come after, has ' || outcome))
            from gone join hopeless on hopeless.job_id = gone.id;
            update outbox.live_job live
            set blocked = case when group_key is not null then 'new' end, run_at = greatest(run_at, clock_timestamp())
            where id = any (waiting) and blocked = 'after'
              and not exists (select from outbox.dependency where job_id = live.id and not met);
        end if;
        if exists (select from ended where batch_id is not null) then
            perform from outbox.batch known
            where known.id = any (array(select batch_id from ended)) order by known.id for update;
            for batch in
                update outbox.batch known
                set succeeded = known.succeeded + more.succeeded, failed = known.failed + more.failed,
                    cancelled = known.cancelled + more.cancelled
                from (
                    select batch_id, count(*) filter (where state = 'succeeded') as succeeded,
                           count(*) filter (where state = 'failed') as failed,
                           count(*) filter (where state = 'cancelled') as cancelled
                    from ended where batch_id is not null group by batch_id
                ) more
                where known.id = more.batch_id
                returning known.*
            loop
                if batch.finished_at is null and batch.succeeded + batch.failed + batch.cancelled = batch.total then
                    update outbox.batch known set finished_at = clock_timestamp() where known.id = batch.id;
                    perform outbox.call_back(batch);
                end if;
            end loop;
        end if;
        return null;
    end
    $$
    """


UP = (
    """
    create table outbox.batch (
        id          uuid primary key,
        name        text not null,
        tenant      text,
        callbacks   jsonb not null default '[]',
        total       integer not null,
        succeeded   integer not null default 0,
        failed      integer not null default 0,
        cancelled   integer not null default 0,
        created_at  timestamptz not null default clock_timestamp(),
        finished_at timestamptz,
        constraint batch_name check (length(name) between 1 and 200),
        constraint batch_counts check (succeeded >= 0 and failed >= 0 and cancelled >= 0
            and succeeded + failed + cancelled <= total)
    ) with (fillfactor = 50)
    """,
    "comment on table outbox.batch is 'jobs that were enqueued together, and how many of them have ended how'",
    *(
        f"comment on column outbox.batch.{column} is '{meaning}'"
        for column, meaning in {
            "id": "UUIDv7, chosen by whoever enqueues",
            "name": "for people",
            "tenant": "whose it is; null: of nobody in particular",
            "callbacks": "what is enqueued when the last of its jobs has ended: [{outcome, id, task, …}]",
            "total": "how many jobs it has",
            "succeeded": "how many of them have succeeded",
            "failed": "how many of them have failed",
            "cancelled": "how many of them were cancelled",
            "created_at": "when it was enqueued",
            "finished_at": "when the last of its jobs ended for the first time; a requeue does not change that",
        }.items()
    ),
    "create index batch_finished_at on outbox.batch (finished_at) where finished_at is not null",
    """
    create table outbox.dependency (
        job_id   uuid not null,
        after_id uuid not null,
        position smallint not null,
        anyway   boolean not null,
        met      boolean not null default false,
        primary key (job_id, after_id)
    )
    """,
    "comment on table outbox.dependency is 'which jobs run after which'",
    "comment on column outbox.dependency.job_id is 'the job that waits'",
    "comment on column outbox.dependency.after_id is 'the job that it waits for'",
    "comment on column outbox.dependency.position is 'its place among those that the job waits for'",
    "comment on column outbox.dependency.anyway is 'whether it is enough that it has ended, succeeded or not'",
    "comment on column outbox.dependency.met is 'whether that has happened'",
    "create index dependency_after on outbox.dependency (after_id)",
    "create index live_job_batch on outbox.live_job (batch_id, id) where batch_id is not null",
    "create index finished_job_batch on outbox.finished_job (batch_id, id) where batch_id is not null",
    """
    create function outbox.first_id(moment timestamptz) returns uuid language sql immutable parallel safe as $$
        select (rpad(lpad(to_hex((extract(epoch from moment) * 1000)::bigint), 12, '0'), 32, '0'))::uuid
    $$
    """,
    "comment on function outbox.first_id(timestamptz) is 'the lowest id that a job enqueued at that moment can have'",
    cancel_batch(KEPT),
    "comment on function outbox.cancel_batch is 'cancels the jobs of a batch, and asks to stop those that run'",
    call_back(),
    "comment on function outbox.call_back(outbox.batch) is 'enqueues what a batch that is through calls for'",
    job_ended(KEPT),
    "comment on function outbox.job_ended is 'what follows when jobs have ended: see batch and dependency'",
    """
    create trigger job_ended after insert on outbox.finished_job
        referencing new table as ended for each statement execute function outbox.job_ended()
    """,
)

DOWN = (
    "drop trigger job_ended on outbox.finished_job",
    "drop function outbox.job_ended",
    "drop function outbox.cancel_batch",
    "drop function outbox.call_back",
    "drop function outbox.first_id",
    "drop index outbox.finished_job_batch",
    "drop index outbox.live_job_batch",
    "drop table outbox.dependency",
    "drop table outbox.batch",
)
