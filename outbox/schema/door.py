"""The SQL door with the options of version 2: unique keys, groups, limits, payload versions, ceilings."""

from outbox.schema import v1


def enqueue(*, headers: bool = False) -> str:
    """The function; from version 4 on with headers."""
    given, more, said = (
        (",\n        headers jsonb default null", ", headers", ", enqueue.headers") if headers else ("", "", "")
    )
    return f"""
    create function outbox.enqueue(
        task text,
        payload jsonb default '{{}}',
        queue text default 'default',
        delay interval default null,
        run_at timestamptz default null,
        priority integer default 1,
        max_attempts integer default null,
        tags jsonb default null,
        id uuid default null,
        key text default null,
        on_conflict text default 'keep',
        "group" text default null,
        passable boolean default false,
        limit_key text default '',
        version integer default 1,
        tenant text default null{given}
    ) returns uuid language plpgsql as $$
    #variable_conflict use_column
    declare
        new_id uuid := coalesce(enqueue.id, outbox.uuid7());
        written uuid;
    begin
{v1.CHECKS}
        if enqueue.on_conflict not in ('keep', 'reject') then
            raise exception 'outbox.enqueue: on_conflict is %, it must be keep or reject', enqueue.on_conflict
                using errcode = 'invalid_parameter_value';
        end if;
        perform outbox.has_room(array[enqueue.queue]);
        for round in 1 .. 20 loop
            insert into outbox.live_job as live (
                id, task, queue, payload, priority, run_at, max_attempts, tags, key, group_key, passable, blocked,
                limit_key, version, tenant, limited{more}
            )
            values (
                new_id, enqueue.task, enqueue.queue, enqueue.payload, enqueue.priority,
                greatest(enqueue.run_at, clock_timestamp() + enqueue.delay, clock_timestamp()), enqueue.max_attempts,
                enqueue.tags, enqueue.key, enqueue."group", enqueue.passable,
                case when enqueue."group" is not null then 'new' end, enqueue.limit_key, enqueue.version,
                enqueue.tenant,
                exists (
                    select from outbox.job_limit rule
                    where rule.name = case rule.scope when 'task' then enqueue.task else enqueue.queue end
                ){said}
            )
            on conflict (task, key) where key is not null do nothing
            returning live.id into written;
            if written is not null then
                return written;
            end if;
            select live.id into written from outbox.live_job live
            where live.task = enqueue.task and live.key = enqueue.key;
            if written is not null and enqueue.on_conflict = 'reject' then
                raise exception 'outbox.enqueue: task % has a job with the key % already: %',
                    enqueue.task, enqueue.key, written using errcode = 'OB409', detail = written::text;
            end if;
            if written is not null then
                return written;
            end if;
        end loop;
        raise exception 'outbox.enqueue: the key % is taken and free in turns; try again', enqueue.key
            using errcode = 'serialization_failure';
    end
    $$
    """


COMMENT = "comment on function outbox.enqueue is 'writes one job in the current transaction and returns its id'"

UP = ("drop function outbox.enqueue", enqueue(), COMMENT)

DOWN = ("drop function outbox.enqueue", *v1.ENQUEUE)
