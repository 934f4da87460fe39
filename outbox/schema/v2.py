"""Version 2 of the ``outbox`` schema: keys, versions, checkpoints, groups, and jobs settled by their handlers."""

from outbox.schema import door, flow, group, inbox, limit, queue, schedule, v1

_COMMENTS = {
    "key": "what makes the job unique among the live ones of its task; null: nothing does",
    "version": "version of the payload; a worker claims only those that its own code can read",
    "checkpoint": "what the handler last said to keep for its next attempt",
    "group_key": "jobs of a group run one at a time, in the order of their ids; null: in none",
    "passable": "while it waits for its time, those behind it in its group may pass",
    "limited": "whether a limit holds for it: then it is claimed in turns",
    "limit_key": "whose turn it takes, a tenant say; empty: no matter",
    "tenant": "whose job it is; null: of nobody in particular",
    "batch_id": "the batch that it belongs to; null: to none",
    "followed": "whether jobs wait for it to end",
    "blocked": "after: comes after others; new: not yet in its group; group: another is before it; null: by nothing",
}

_COLUMNS = (
    "key text, version smallint not null default 1, checkpoint jsonb, "
    "group_key text, passable boolean not null default false, limited boolean not null default false, "
    "limit_key text not null default '', tenant text, batch_id uuid, followed boolean not null default false, "
    "blocked text"
)

COLUMNS = tuple(_COMMENTS)
"""What it adds to both tables."""

_ADD = ", ".join(f"add column {column}" for column in _COLUMNS.split(", "))
_DROP = ", ".join(f"drop column {name}" for name in _COMMENTS)


def finish(*, headers: bool = False) -> str:
    """For a handler that settles its job in its own transaction: on a connection that is not the worker's, and so
    without the worker's planner settings. A function brings its own."""
    more, said = (", headers", ", job.headers") if headers else ("", "")
    return f"""
    create or replace function outbox.finish(
        id uuid, fence bigint, result text, error text, progress text, checkpoint text
    ) returns boolean
    language plpgsql set enable_seqscan = off set enable_bitmapscan = off as $$
    declare
        job outbox.live_job;
        its_group text;
    begin
        select live.group_key into its_group from outbox.live_job live where live.id = finish.id;
        if its_group is not null then
            perform outbox.lock_groups(array[its_group]);
        end if;
        delete from outbox.live_job live
        where live.id = finish.id and live.fence = finish.fence and live.state <> 'pending'
        returning * into job;
        if not found then
            return false;
        end if;
        insert into outbox.finished_job (
            id, task, queue, state, priority, run_at, payload, attempt, max_attempts, lost, fence, worker_id,
            created_at, started_at, cancel_requested_at, tags, key, version, group_key, passable, limited,
            limit_key, tenant, batch_id, followed, checkpoint, progress, result, errors{more}
        ) values (
            job.id, job.task, job.queue, 'succeeded', job.priority, job.run_at, job.payload, job.attempt + 1,
            job.max_attempts, job.lost, job.fence, job.worker_id, job.created_at, job.started_at,
            job.cancel_requested_at, job.tags, job.key, job.version, job.group_key, job.passable,
            job.limited, job.limit_key, job.tenant, job.batch_id, job.followed,
            coalesce(finish.checkpoint::jsonb, job.checkpoint), coalesce(finish.progress::jsonb, job.progress),
            finish.result::jsonb,
            outbox.append_error(job.errors, finish.error::jsonb || jsonb_build_object(
                'attempt', job.attempt + 1, 'fence', job.fence, 'at', clock_timestamp(), 'worker_id',
                job.worker_id)){said}
        );
        if its_group is not null then
            perform outbox.open_groups(array[its_group]);
        end if;
        return true;
    end
    $$
    """


UP = (
    f"alter table outbox.live_job {_ADD}",
    f"alter table outbox.finished_job {_ADD}",
    *(
        f"comment on column outbox.{table}.{column} is '{meaning}'"
        for table in ("live_job", "finished_job")
        for column, meaning in _COMMENTS.items()
    ),
    # One live job of a task has a key. It is reached by key only; no statement of the worker can be planned over it.
    "create unique index live_job_key on outbox.live_job (task, key) where key is not null",
    "alter table outbox.live_job add constraint live_job_key_length check (length(key) between 1 and 200)",
    "alter table outbox.live_job add constraint live_job_tenant_length check (length(tenant) between 1 and 200)",
    """
    create table outbox.held_key (
        task   text not null,
        key    text not null,
        job_id uuid not null,
        until  timestamptz not null,
        primary key (task, key)
    )
    """,
    "comment on table outbox.held_key is 'keys that are taken for a period, whatever becomes of the job'",
    "comment on column outbox.held_key.task is 'the task whose jobs the key tells apart'",
    "comment on column outbox.held_key.key is 'the key'",
    "comment on column outbox.held_key.job_id is 'the job that has it'",
    "comment on column outbox.held_key.until is 'when it is free again'",
    "create index held_key_until on outbox.held_key (until)",
    *queue.UP,
    *limit.UP,
    *group.UP,
    *schedule.UP,
    *flow.UP,
    *door.UP,
    *inbox.UP,
    "create or replace view outbox.job as " + v1.both_tables(*COLUMNS),
    finish(),
    "comment on function outbox.finish is 'settles a claim as succeeded with the current transaction; false if stale'",
    # A checkpoint in a transaction of the handler's, for the same reason a function.
    """
    create function outbox.keep(id uuid, fence bigint, checkpoint text) returns boolean
    language plpgsql set enable_seqscan = off set enable_bitmapscan = off as $$
    declare
        its_group text;
    begin
        select live.group_key into its_group from outbox.live_job live
        where live.id = keep.id and live.fence = keep.fence and live.state <> 'pending';
        if its_group is not null then
            perform outbox.lock_groups(array[its_group]);  -- before the row, as everybody does
        end if;
        update outbox.live_job live set checkpoint = keep.checkpoint::jsonb
        where live.id = keep.id and live.fence = keep.fence and live.state <> 'pending';
        return found;
    end
    $$
    """,
    "comment on function outbox.keep is 'writes a checkpoint with the current transaction; false: stale'",
    "insert into outbox.schema_version (version) values (2)",
)

DOWN = (
    "delete from outbox.schema_version where version = 2",
    "drop function outbox.keep",
    "drop function outbox.finish",
    *schedule.DOWN,
    *inbox.DOWN,
    *door.DOWN,
    *flow.DOWN,
    *group.DOWN,
    *limit.DOWN,
    *queue.DOWN,
    "drop table outbox.held_key",
    "drop view outbox.job",
    "alter table outbox.live_job drop constraint live_job_tenant_length",
    "alter table outbox.live_job drop constraint live_job_key_length",
    f"alter table outbox.finished_job {_DROP}",
    f"alter table outbox.live_job {_DROP}",
    "create view outbox.job as " + v1.both_tables(),
    v1.VIEW_COMMENT,
)
