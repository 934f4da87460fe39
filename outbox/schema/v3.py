"""Version 3 of the ``outbox`` schema: what people see. Workers, statistics, keys, audit, and finding finished jobs."""

from outbox.schema import access, overview, partition, worker
from outbox.schema.flow import KEPT

# Finished jobs are found by what people ask for most; each index holds few of them, for one that held all would cost
# every job a twentieth of its speed.
_FIND = (
    "create index finished_job_trouble on outbox.finished_job (id) where state <> 'succeeded'",
    "create index finished_job_tenant on outbox.finished_job (tenant, id) where tenant is not null",
    "create index finished_job_group on outbox.finished_job (group_key, id) where group_key is not null",
    "create index finished_job_key on outbox.finished_job (key, id) where key is not null",
)


def cancel_jobs(kept: str) -> str:
    """The same as cancelling each of them, as one. A job that is being settled just now is passed over."""
    return f"""
    create or replace function outbox.cancel_jobs(wanted uuid[]) returns integer
    language plpgsql set enable_seqscan = off set enable_bitmapscan = off as $$
    declare
        groups text[];
        asked integer;
        cancelled integer;
    begin
        groups := array(
            select distinct group_key from outbox.live_job where id = any (wanted) and group_key is not null
        );
        perform outbox.lock_groups(groups) where cardinality(groups) > 0;
        wanted := array(select id from outbox.live_job where id = any (wanted) order by id for update skip locked);
        update outbox.live_job set cancel_requested_at = coalesce(cancel_requested_at, clock_timestamp())
        where id = any (wanted) and state <> 'pending';
        get diagnostics asked = row_count;
        with gone as (
            delete from outbox.live_job where id = any (wanted) and state = 'pending' returning *
        )
        insert into outbox.finished_job ({kept}, state, errors)
        select {kept.replace("cancel_requested_at", "clock_timestamp()")}, 'cancelled', errors
        from gone;
        get diagnostics cancelled = row_count;
        perform outbox.open_groups(groups) where cardinality(groups) > 0;
        return asked + cancelled;
    end
    $$
    """


UP = (
    *_FIND,
    *worker.UP,
    *access.UP,
    *overview.UP,
    *partition.UP,
    cancel_jobs(KEPT),
    "comment on function outbox.cancel_jobs(uuid[]) is 'cancels jobs, and asks to stop those that run; how many'",
    "insert into outbox.schema_version (version) values (3)",
)

DOWN = (
    "delete from outbox.schema_version where version = 3",
    "drop function outbox.cancel_jobs",
    *partition.DOWN,
    *overview.DOWN,
    *access.DOWN,
    *worker.DOWN,
    "drop index outbox.finished_job_key",
    "drop index outbox.finished_job_group",
    "drop index outbox.finished_job_tenant",
    "drop index outbox.finished_job_trouble",
)
