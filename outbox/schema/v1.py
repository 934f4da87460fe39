"""Version 1 of the ``outbox`` schema, one statement per string.

Live jobs stand in a narrow table of their own; a finished job moves, in the statement that settles it, to a table
partitioned by day, whose partitions retention drops whole. The view ``outbox.job`` is both.
"""

_JOB_COLUMNS = """
    id                  uuid primary key default outbox.uuid7(),
    task                text not null,
    queue               text not null default 'default',
    state               text not null default 'pending',
    priority            smallint not null default 1,
    run_at              timestamptz not null default clock_timestamp(),
    payload             jsonb not null default '{}',
    attempt             smallint not null default 0,
    max_attempts        smallint,
    lost                smallint not null default 0,
    fence               bigint not null default 0,
    worker_id           uuid,
    lease_until         timestamptz,
    created_at          timestamptz not null default clock_timestamp(),
    started_at          timestamptz,
    cancel_requested_at timestamptz,
    progress            jsonb,
    errors              jsonb,
    tags                jsonb,
"""

_COMMENTS = {
    "id": "UUIDv7, chosen by whoever enqueues, so that it is known before the row is written",
    "task": "name of the declared task that runs it; a name that no worker knows waits",
    "queue": "which workers may claim it, and into whose slots",
    "state": "pending or running; terminal states stand in finished_job",
    "priority": "3 is claimed first, 0 last",
    "run_at": "not claimed before this time; moves with every retry, snooze, release and rescue",
    "payload": "the arguments by name",
    "attempt": "attempts charged so far by the retry policy",
    "max_attempts": "attempts allowed; null: as the task says when it runs",
    "lost": "claims that ended in a dead worker; three make the job fail as poison",
    "fence": "grows by one at every claim and never goes back; every write about an attempt names it",
    "worker_id": "the worker process of the last claim, a random id for each start of a process",
    "lease_until": "the claim is good until then unless renewed; set exactly while running",
    "created_at": "when the job was enqueued",
    "started_at": "when it was last claimed",
    "cancel_requested_at": "a person asked to cancel it while it ran; its worker learns so at the next heartbeat",
    "progress": "{done, total, message} as the handler last said",
    "errors": "the last 20 failures, oldest first: {attempt, fence, at, type, message, traceback}",
    "tags": "array of strings, to find jobs by",
}

_SHOWN = (
    "id, task, queue, state, priority, run_at, payload, attempt, max_attempts, lost, fence, worker_id, lease_until, "
    "created_at, started_at, cancel_requested_at, progress, errors, tags"
)


def both_tables(*later: str) -> str:
    """The query of the view ``outbox.job``, with columns that later versions have added to both tables."""
    more = "".join(f", {name}" for name in later)
    live = f"select {_SHOWN}, null::jsonb as result, null::timestamptz as finished_at{more} from outbox.live_job"
    return f"{live} union all select {_SHOWN}, result, finished_at{more} from outbox.finished_job"


VIEW_COMMENT = "comment on view outbox.job is 'every job, live and finished'"

# What any version of the SQL door refuses.
CHECKS = """
        if jsonb_typeof(enqueue.payload) is distinct from 'object' then
            raise exception 'outbox.enqueue: payload must be a JSON object of arguments by name, got %',
                coalesce(jsonb_typeof(enqueue.payload), 'null') using errcode = 'invalid_parameter_value';
        end if;
        if octet_length(enqueue.payload::text) > 1000000 then
            raise exception 'outbox.enqueue: payload is % bytes of JSON, limit 1000000: store it and pass its id',
                octet_length(enqueue.payload::text) using errcode = 'program_limit_exceeded';
        end if;
        if jsonb_path_exists(enqueue.payload,
            'strict $.**{64 to last} ? (@.type() == "object" || @.type() == "array")')
        then
            raise exception 'outbox.enqueue: payload is nested deeper than 64 levels'
                using errcode = 'program_limit_exceeded';
        end if;
        if jsonb_path_exists(enqueue.payload,
            'strict $.** ? (@.type() == "number" && (@ > 9223372036854775807 || @ < -9223372036854775808))')
        then
            raise exception 'outbox.enqueue: payload holds a number beyond 64 bit: pass it as a string'
                using errcode = 'numeric_value_out_of_range';
        end if;
        if jsonb_typeof(enqueue.tags) <> 'array'
            or jsonb_path_exists(enqueue.tags, 'strict $[*] ? (@.type() != "string" || @ == "")')
        then
            raise exception 'outbox.enqueue: tags must be a JSON array of strings that are not empty'
                using errcode = 'invalid_parameter_value';
        end if;
        if enqueue.delay < interval '0' then
            raise exception 'outbox.enqueue: delay is %, it must not be negative', enqueue.delay
                using errcode = 'invalid_parameter_value';
        end if;
        if enqueue.delay is not null and enqueue.run_at is not null then
            raise exception 'outbox.enqueue: give delay or run_at, not both' using errcode = 'invalid_parameter_value';
        end if;
"""

# The door for triggers, psql and other languages. Same rules as the Python door, as far as the database can know them:
# it cannot know a task's argument types, nor its declared queue.
ENQUEUE = (
    f"""
    create function outbox.enqueue(
        task text,
        payload jsonb default '{{}}',
        queue text default 'default',
        delay interval default null,
        run_at timestamptz default null,
        priority integer default 1,
        max_attempts integer default null,
        tags jsonb default null,
        id uuid default null
    ) returns uuid language plpgsql as $$
    declare
        new_id uuid := coalesce(enqueue.id, outbox.uuid7());
    begin
{CHECKS}        insert into outbox.live_job (id, task, queue, payload, priority, run_at, max_attempts, tags)
        values (new_id, enqueue.task, enqueue.queue, enqueue.payload, enqueue.priority,
                coalesce(enqueue.run_at, clock_timestamp() + enqueue.delay, clock_timestamp()),
                enqueue.max_attempts, enqueue.tags);
        return new_id;
    end
    $$
    """,
    "comment on function outbox.enqueue is 'writes one job in the current transaction and returns its id'",
)

UP = (
    "create schema outbox",
    "comment on schema outbox is 'jobs that are written in the same transaction as business data'",
    """
    create table outbox.schema_version (
        version      integer primary key,
        installed_at timestamptz not null default now()
    )
    """,
    "comment on table outbox.schema_version is 'versions of this schema that have been applied'",
    # Postgres has uuidv7() from 18 on; this one serves 15 to 17 as well.
    """
    create function outbox.uuid7() returns uuid language sql volatile parallel safe as $$
        select encode(
            set_bit(set_bit(
                overlay(uuid_send(gen_random_uuid())
                    placing substring(int8send((extract(epoch from clock_timestamp()) * 1000)::bigint) from 3)
                    from 1 for 6),
                52, 1), 53, 1),
            'hex')::uuid
    $$
    """,
    "comment on function outbox.uuid7() is 'a time-ordered UUID, version 7'",
    # One place that knows how many errors are kept. Immutable and in SQL, so it is inlined.
    """
    create function outbox.append_error(errors jsonb, error jsonb) returns jsonb
    language sql immutable parallel safe as $$
        select case
            when error is null then errors
            when jsonb_array_length(errors) >= 20 then (errors - 0) || jsonb_build_array(error)
            else coalesce(errors, '[]') || jsonb_build_array(error)
        end
    $$
    """,
    "comment on function outbox.append_error(jsonb, jsonb) is 'adds a failure to a job, keeping the last 20'",
    f"""
    create table outbox.live_job (
        {_JOB_COLUMNS}
        constraint live_job_state check (state in ('pending', 'running')),
        constraint live_job_lease check ((state = 'running') = (lease_until is not null)),
        constraint live_job_priority check (priority between 0 and 3),
        constraint live_job_names check (length(task) between 1 and 200 and length(queue) between 1 and 200),
        constraint live_job_counts check (attempt >= 0 and lost >= 0 and fence >= 0 and max_attempts >= 1),
        constraint live_job_payload check (jsonb_typeof(payload) = 'object'),
        constraint live_job_errors check (jsonb_typeof(errors) = 'array'),
        constraint live_job_tags check (jsonb_typeof(tags) = 'array')
    ) with (
        fillfactor = 80,
        autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
        autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 50000,
        autovacuum_vacuum_cost_delay = 0
    )
    """,
    "comment on table outbox.live_job is 'jobs that wait or run; finished ones move to finished_job'",
    # What a claim reads, in the order in which it takes.
    "create index live_job_claim on outbox.live_job (queue, priority, run_at, id) where state = 'pending'",
    # What rescue reads. The predicate must not be state = 'running': a settle that says the same would be planned
    # over this index instead of the primary key (measured: 2,100 jobs/s instead of 70,000).
    "create index live_job_lease_until on outbox.live_job (lease_until) where lease_until is not null",
    f"""
    create table outbox.finished_job (
        {_JOB_COLUMNS.replace("primary key default outbox.uuid7()", "not null")}
        result              jsonb,
        finished_at         timestamptz not null default now(),
        primary key (id, finished_at),
        constraint finished_job_state check (state in ('succeeded', 'failed', 'cancelled')),
        constraint finished_job_lease check (lease_until is null)
    ) partition by range (finished_at)
    """,
    "comment on table outbox.finished_job is 'jobs that have ended, partitioned by day (UTC)'",
    "comment on column outbox.finished_job.result is 'what the handler returned'",
    "comment on column outbox.finished_job.finished_at is 'when the job ended'",
    # A settle must never fail for want of a partition. Workers make those of the next days ahead, so this stays empty.
    "create table outbox.finished_job_default partition of outbox.finished_job default",
    "comment on table outbox.finished_job_default is 'catches finished jobs whose day has no partition yet'",
    *(
        f"comment on column outbox.{table}.{column} is '{meaning}'"
        for table in ("live_job", "finished_job")
        for column, meaning in _COMMENTS.items()
    ),
    "create view outbox.job as " + both_tables(),
    VIEW_COMMENT,
    # Partitions of finished_job: one per day, made ahead, dropped by age. Short locks, or none: see maintenance.py.
    """
    create function outbox.partition_name(day date) returns text language sql immutable as $$
        select 'finished_job_' || to_char(day, 'YYYYMMDD')
    $$
    """,
    "comment on function outbox.partition_name(date) is 'the partition of jobs finished on that day'",
    """
    create function outbox.add_partition(day date) returns boolean language plpgsql as $$
    begin
        if to_regclass('outbox.' || outbox.partition_name(day)) is not null then
            return false;
        end if;
        execute format(
            'create table outbox.%I partition of outbox.finished_job for values from (%L) to (%L)',
            outbox.partition_name(day), day::timestamp at time zone 'UTC', (day + 1)::timestamp at time zone 'UTC'
        );
        return true;
    exception
        -- Two workers at once, or jobs of that day already in the default partition: both are fine as they are.
        when duplicate_table or check_violation then return false;
    end
    $$
    """,
    "comment on function outbox.add_partition(date) is 'makes the partition of a day (UTC); false if it is there'",
    """
    select outbox.add_partition(day::date)
    from generate_series((now() at time zone 'UTC')::date, (now() at time zone 'UTC')::date + 3, '1 day') day
    """,
    *ENQUEUE,
    "insert into outbox.schema_version (version) values (1)",
)

DOWN = (
    "drop function outbox.enqueue",
    "drop function outbox.add_partition",
    "drop function outbox.partition_name",
    "drop view outbox.job",
    "drop table outbox.finished_job",
    "drop table outbox.live_job",
    "drop function outbox.append_error",
    "drop function outbox.uuid7",
    "drop table outbox.schema_version",
    "drop schema outbox",
)
