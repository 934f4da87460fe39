"""Queues of which a person has said something: that they rest, or how many jobs may wait in them."""

UP = (
    """
    create table outbox.queue (
        name       text primary key,
        paused_at  timestamptz,
        ceiling    integer,
        constraint queue_name check (length(name) between 1 and 200),
        constraint queue_ceiling check (ceiling between 0 and 1000000)
    )
    """,
    "comment on table outbox.queue is 'queues that a person has said something of; all others are as they are'",
    "comment on column outbox.queue.name is 'the name that jobs and workers say'",
    "comment on column outbox.queue.paused_at is 'no job of it is claimed from then on; null: claimed as usual'",
    "comment on column outbox.queue.ceiling is 'no more is enqueued while so many jobs wait in it; null: any number'",
    # Counts no further than to the ceiling, over the indexes that claims read, so a short queue costs next to nothing.
    # Jobs that wait for others, in a group or a flow, do not count.
    """
    create function outbox.has_room(queues text[]) returns boolean
    language plpgsql stable set enable_seqscan = off set enable_bitmapscan = off as $$
    declare
        full_queue text;
    begin
        select known.name into full_queue
        from outbox.queue known
        cross join lateral (
            select count(*) from (
                (
                    select from outbox.live_job live
                    where live.state = 'pending' and live.blocked is null and not live.limited
                      and live.queue = known.name
                    limit known.ceiling
                ) union all (
                    select from outbox.live_job live
                    where live.state = 'pending' and live.blocked is null and live.limited
                      and live.queue = known.name
                    limit known.ceiling
                )
            ) each
        ) waiting
        where known.ceiling is not null and known.name = any (queues) and waiting.count >= known.ceiling
        limit 1;
        if found then
            raise exception 'outbox: queue % is full', full_queue using errcode = 'OB503', detail = full_queue;
        end if;
        return true;
    end
    $$
    """,
    "comment on function outbox.has_room(text[]) is 'raises OB503 if one of these queues is at its ceiling'",
)

DOWN = ("drop function outbox.has_room", "drop table outbox.queue")
