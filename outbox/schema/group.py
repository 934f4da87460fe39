"""Groups: at most one job of each is open, which is to say waiting for its claim or running; the others are blocked.

A job of a group is written as ``new``. Workers let it in (``admit``): it takes its place behind those before it, and
the first of a group that has no open job is opened (``open_groups``). Whatever ends the turn of an open job opens the
next in the same transaction. All of that is done under the group's lock, and each statement sees what was committed
before the lock was granted; so nothing is ever lost between two, and a unique index says that one job is open.
"""

UP = (
    # What is blocked is not in the way of a claim, however much there is of it.
    "drop index outbox.live_job_claim",
    """
    create index live_job_claim on outbox.live_job (queue, priority, run_at, id)
        where state = 'pending' and blocked is null and not limited
    """,
    # At most one job of a group is not blocked, waiting for its claim or running, whatever anybody does.
    "create unique index live_job_open on outbox.live_job (group_key) where group_key is not null and blocked is null",
    """
    create index live_job_group on outbox.live_job (group_key, id)
        where group_key is not null and blocked in ('new', 'group')
    """,
    "create index live_job_new on outbox.live_job (run_at) where blocked = 'new'",
    "alter table outbox.live_job add constraint live_job_group_length check (length(group_key) between 1 and 200)",
    """
    alter table outbox.live_job add constraint live_job_blocked
        check (blocked is null or (
            state = 'pending' and (blocked = 'after' or (blocked in ('new', 'group') and group_key is not null))
        ))
    """,
    "alter table outbox.finished_job add constraint finished_job_blocked check (blocked is null)",
    # Whoever changes which job of a group is open locks the group before it locks any row, and several in one order.
    # A lock is a number of few, so that no transaction can fill the server's table of locks; two groups may share one.
    """
    create function outbox.group_lock(name text) returns integer language sql immutable parallel safe as $$
        select hashtext(name) & 2047
    $$
    """,
    "comment on function outbox.group_lock(text) is 'which of the advisory locks guards the group'",
    """
    create function outbox.lock_groups(groups text[]) returns void language plpgsql as $$
    begin
        if current_setting('transaction_isolation') <> 'read committed' then
            raise exception 'outbox: a job of a group can only be moved at READ COMMITTED'
                using errcode = 'feature_not_supported';
        end if;
        perform pg_advisory_xact_lock(1869968482, lock)
        from (select distinct outbox.group_lock(name) as lock from unnest(groups) as name order by 1) ordered;
    end
    $$
    """,
    "comment on function outbox.lock_groups(text[]) is 'keeps others from opening a job of these groups until commit'",
    """
    create function outbox.try_lock_groups(groups text[]) returns text[] language sql as $$
        select coalesce(array_agg(name), '{}')
        from (select distinct name from unnest(groups) as name offset 0) wanted
        where pg_try_advisory_xact_lock(1869968482, outbox.group_lock(name))
    $$
    """,
    "comment on function outbox.try_lock_groups(text[]) is 'the same, for those that nobody holds; answers which'",
    # Each statement of a function takes a snapshot of its own: what is looked at here is later than the locks.
    """
    create function outbox.open_groups(groups text[]) returns integer
    language plpgsql set enable_seqscan = off set enable_bitmapscan = off as $$
    declare
        opened integer;
    begin
        -- Claims do not look at positions that have passed.
        update outbox.live_job live set blocked = null, run_at = greatest(run_at, clock_timestamp())
        where live.id = any (array(
            select first.id
            from (select distinct unnest(groups) as name offset 0) wanted
            cross join lateral (
                select job.id from outbox.live_job job
                where job.group_key = wanted.name and job.blocked in ('new', 'group')
                  and (not job.passable or job.run_at <= clock_timestamp())
                order by job.id limit 1
            ) first
            where not exists (
                select from outbox.live_job open where open.group_key = wanted.name and open.blocked is null
            )
        ));
        get diagnostics opened = row_count;
        return opened;
    end
    $$
    """,
    "comment on function outbox.open_groups is 'lets the first job of each group run, unless one does; lock first'",
    """
    create function outbox.admit(batch integer, since timestamptz) returns integer
    language plpgsql set enable_seqscan = off set enable_bitmapscan = off as $$
    declare
        groups text[];
        arrived uuid[];
        opened integer;
    begin
        select array_agg(group_key), array_agg(id) into groups, arrived from (
            select group_key, id from outbox.live_job
            where blocked = 'new' and run_at between since and now() order by run_at limit batch
        ) due;
        groups := outbox.try_lock_groups(groups);
        update outbox.live_job set blocked = 'group'
        where id = any (array(
            select id from outbox.live_job
            where id = any (arrived) and group_key = any (groups) and blocked = 'new'
            for update skip locked
        ));
        select outbox.open_groups(groups) into opened;
        return opened;
    end
    $$
    """,
    "comment on function outbox.admit is 'lets jobs that have come into their groups; how many may run now'",
)

DOWN = (
    "drop function outbox.admit",
    "drop function outbox.open_groups",
    "drop function outbox.try_lock_groups",
    "drop function outbox.lock_groups",
    "drop function outbox.group_lock",
    "alter table outbox.finished_job drop constraint finished_job_blocked",
    "alter table outbox.live_job drop constraint live_job_blocked",
    "alter table outbox.live_job drop constraint live_job_group_length",
    "drop index outbox.live_job_claim",
    "create index live_job_claim on outbox.live_job (queue, priority, run_at, id) where state = 'pending'",
)
