"""How queues stand, for people: counted up to a bound and over indexes, whatever the statistics of the table say."""

UP = (
    # The names of queues in which jobs wait: one step in the index from each to the next.
    """
    create function outbox.waiting_queues() returns setof text
    language sql stable set enable_seqscan = off set enable_bitmapscan = off as $$
        with recursive plain as (
            (select queue from outbox.live_job
             where state = 'pending' and blocked is null and not limited order by queue limit 1)
            union all
            select (select queue from outbox.live_job live
                    where state = 'pending' and blocked is null and not limited and live.queue > plain.queue
                    order by queue limit 1)
            from plain where plain.queue is not null
        ), limited as (
            (select queue from outbox.live_job
             where state = 'pending' and blocked is null and limited order by queue limit 1)
            union all
            select (select queue from outbox.live_job live
                    where state = 'pending' and blocked is null and limited and live.queue > limited.queue
                    order by queue limit 1)
            from limited where limited.queue is not null
        )
        select queue from plain where queue is not null union select queue from limited where queue is not null
    $$
    """,
    "comment on function outbox.waiting_queues() is 'the queues in which jobs wait'",
    """
    create function outbox.queue_state(
        wanted text, most integer, out ready integer, out scheduled integer, out oldest timestamptz
    ) language plpgsql stable set enable_seqscan = off set enable_bitmapscan = off as $$
    begin
        select sum(due.count), sum(later.count), min(due.first) into ready, scheduled, oldest
        from generate_series(0, 3) as level (priority)
        cross join lateral (
            select count(*), min(run_at) as first from (
                select run_at from outbox.live_job
                where state = 'pending' and blocked is null and not limited and queue = wanted
                  and priority = level.priority and run_at <= now()
                order by run_at limit most
            ) due
        ) due
        cross join lateral (
            select count(*) from (
                select from outbox.live_job
                where state = 'pending' and blocked is null and not limited and queue = wanted
                  and priority = level.priority and run_at > now()
                order by run_at limit most
            ) later
        ) later;
        select ready + count(*) filter (where run_at <= now()), scheduled + count(*) filter (where run_at > now()),
               least(oldest, min(run_at) filter (where run_at <= now()))
        into ready, scheduled, oldest
        from (
            select run_at from outbox.live_job
            where state = 'pending' and blocked is null and limited and queue = wanted
            order by task, limit_key, priority, run_at limit most
        ) turns;
        ready := least(ready, most);
        scheduled := least(scheduled, most);
    end
    $$
    """,
    "comment on function outbox.queue_state is 'how many jobs of a queue are due and scheduled, up to a bound'",
    """
    create function outbox.trouble(most integer, tenant text) returns integer
    language sql stable set enable_seqscan = off set enable_bitmapscan = off as $$
        select count(*)::integer from (
            select from outbox.finished_job job
            where state <> 'succeeded' and state = 'failed'
              and (trouble.tenant is null or job.tenant = trouble.tenant)
            order by id desc limit most
        ) failed
    $$
    """,
    "comment on function outbox.trouble is 'how many jobs have failed and were not run again, up to a bound'",
)

DOWN = (
    "drop function outbox.trouble",
    "drop function outbox.queue_state",
    "drop function outbox.waiting_queues",
)
