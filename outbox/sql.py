"""Every statement of the hot path, in the order of a job's life, so that it can be reviewed in one sitting.

ENQUEUE and the two moves that people make run in the caller's transaction and are written for any driver (``:name``).
The worker's statements run on asyncpg (``$1``), each a transaction of its own that changes many jobs in one round trip.

Habits that keep them right:

* States are literals. With ``state = $1`` a generic plan cannot use the partial index.
* Every write about an attempt names its ``fence``. No row means that the lease is lost.
* A statement that settles says ``state <> 'pending'``, which in ``live_job`` is to say running, and no planner can
  prove it: it must find its rows by primary key, never over an index meant for others.
* Whatever locks rows of others says SKIP LOCKED, so that nothing but a settle ever waits for a row, and no two
  statements can wait for each other.
* ``live_job`` is never joined without ``id = any (...)``, or only inside a LATERAL that cannot be pulled up. Where the
  statistics say that it is empty (and after a vacuum of an idle queue they do), the planner would else walk the whole
  primary key first and filter, however full the table is by then: 186 ms for a claim of ten have been seen.
* Leases are reckoned by ``clock_timestamp()``; ``now()`` stands where an index bound is read, since a volatile function
  cannot be one.
"""

# (nothing) → pending.
# Any number of jobs in one statement. Arrays travel as text, so that every driver can send them; an empty one is a
# column of nulls. The function is only called where there are ceilings: a call is a fifth of what a single job costs.
# No position lies in the past: claims begin where others have left nothing (see marks.py).
ENQUEUE = """
insert into outbox.live_job (
    id, task, queue, payload, priority, run_at, max_attempts, tags, key, group_key, passable, blocked, limit_key,
    tenant, limited, batch_id, followed, version, headers
)
select id, task, queue, payload::jsonb, priority,
       greatest(run_at, clock_timestamp() + make_interval(secs => coalesce(delay, 0))), max_attempts, tags::jsonb, key,
       group_key, coalesce(passable, false),
       case when follows then 'after' when group_key is not null then 'new' end, coalesce(limit_key, ''), tenant,
       task = any (array(select name from outbox.job_limit where scope = 'task'))
           or queue = any (array(select name from outbox.job_limit where scope = 'queue')),
       batch_id, coalesce(followed, false), coalesce(version, 1), headers::jsonb
from unnest(
    cast(:id as uuid[]), cast(:task as text[]), cast(:queue as text[]), cast(:payload as text[]),
    cast(:priority as smallint[]), cast(:run_at as timestamptz[]), cast(:delay as double precision[]),
    cast(:max_attempts as smallint[]), cast(:tags as text[]), cast(:key as text[]),
    cast(:group as text[]), cast(:passable as boolean[]), cast(:limit_key as text[]), cast(:tenant as text[]),
    cast(:batch as uuid[]), cast(:followed as boolean[]), cast(:follows as boolean[]), cast(:version as smallint[]),
    cast(:headers as text[])
) as job (
    id, task, queue, payload, priority, run_at, delay, max_attempts, tags, key, group_key, passable, limit_key, tenant,
    batch_id, followed, follows, version, headers
)
where case when exists (select from outbox.queue where ceiling is not null)
           then (select outbox.has_room(cast(:queue as text[]))) else true end
"""

# The same for the commonest case, one job with nothing but arguments and a trace. It is what a request waits for.
ENQUEUE_ONE = """
insert into outbox.live_job (id, task, queue, payload, priority, max_attempts, headers, limited)
select cast(:id as uuid), cast(:task as text), cast(:queue as text), cast(:payload as jsonb),
       cast(:priority as smallint), cast(:max_attempts as smallint), cast(:headers as jsonb),
       cast(:task as text) = any (array(select name from outbox.job_limit where scope = 'task'))
           or cast(:queue as text) = any (array(select name from outbox.job_limit where scope = 'queue'))
where case when exists (select from outbox.queue where ceiling is not null)
           then (select outbox.has_room(array[cast(:queue as text)])) else true end
"""

# The same for jobs with a key, unless one of them lives.   Index: live_job_key.
# Where another transaction is about to write the same key, it waits to see how that one ends. The keys of a statement
# are taken in one order, so that two statements never wait for each other.
ENQUEUE_UNIQUE = f"""{ENQUEUE}
order by task, key
on conflict (task, key) where key is not null do nothing
returning id
"""

# The same, but what lives with the key and has never started takes on the new job's arguments and options.
ENQUEUE_OR_REPLACE = f"""{ENQUEUE}
order by task, key
on conflict (task, key) where key is not null do update
set queue = excluded.queue, payload = excluded.payload, priority = excluded.priority, run_at = excluded.run_at,
    max_attempts = excluded.max_attempts, tags = excluded.tags, limit_key = excluded.limit_key,
    tenant = excluded.tenant, limited = excluded.limited, version = excluded.version, headers = excluded.headers
where live_job.state = 'pending' and live_job.fence = 0
returning id, task, key
"""

# Secrets open for the id that they were sealed for. Of a job that has just been replaced it is known only now.
RESEAL = "update outbox.live_job set payload = cast(:payload as jsonb) where id = :id"

# Before jobs of batches are written: the batches, or so many more jobs in them.
COUNT_IN = """
insert into outbox.batch as known (id, name, tenant, callbacks, total)
select id, name, tenant, callbacks::jsonb, total
from unnest(
    cast(:id as uuid[]), cast(:name as text[]), cast(:tenant as text[]), cast(:callbacks as text[]),
    cast(:total as integer[])
) as batch (id, name, tenant, callbacks, total)
order by id
on conflict (id) do update set total = known.total + excluded.total where known.finished_at is null
returning id
"""

# Before jobs that come after others are written: those others, where they are in the database already.
FOLLOW = "update outbox.live_job set followed = true where id = any (cast(:id as uuid[])) returning id"
DEPEND = """
insert into outbox.dependency (job_id, after_id, position, anyway)
select job_id, after_id, position, anyway
from unnest(cast(:job as uuid[]), cast(:after as uuid[]), cast(:position as smallint[]), cast(:anyway as boolean[]))
    as dependency (job_id, after_id, position, anyway)
"""

# Who has these keys?   Index: live_job_key.
FIND_KEYS = """
select live.id, live.task, live.key
from unnest(cast(:task as text[]), cast(:key as text[])) as wanted (task, key)
cross join lateral (
    select id, task, key from outbox.live_job live where live.task = wanted.task and live.key = wanted.key offset 0
) live
"""

# Who has these keys for a period that is not over?
FIND_HELD_KEYS = """
select held.task, held.key, held.job_id
from unnest(cast(:task as text[]), cast(:key as text[])) as wanted (task, key)
join outbox.held_key held on held.task = wanted.task and held.key = wanted.key
where held.until > clock_timestamp()
"""

# Take keys for a period; a key whose period is over is free again. Answers whose each key now is. The rows stay locked
# until the transaction ends: whoever wants the same key waits to see how.
HOLD_KEYS = """
with wanted as (
    select * from unnest(
        cast(:task as text[]), cast(:key as text[]), cast(:id as uuid[]), cast(:seconds as double precision[])
    ) as wanted (task, key, id, seconds)
)
insert into outbox.held_key as held (task, key, job_id, until)
select task, key, id, clock_timestamp() + make_interval(secs => seconds) from wanted order by task, key
on conflict (task, key) do update set
    job_id = case when held.until <= clock_timestamp() then excluded.job_id else held.job_id end,
    until = case when held.until <= clock_timestamp() then excluded.until else held.until end
returning task, key, job_id
"""

# A key that was taken for a period belongs to the job that was found to live with it.
HAND_KEYS_OVER = """
update outbox.held_key held set job_id = owner.id
from unnest(cast(:task as text[]), cast(:key as text[]), cast(:id as uuid[])) as owner (task, key, id)
where held.task = owner.task and held.key = owner.key
"""

# When a job may be claimed, one condition after the other; ``explain`` tells people which of them does not hold. What
# is limited is claimed under the same but for the third.
CLAIMABLE = {
    "waits": "live.state = 'pending'",
    "unblocked": "live.blocked is null",
    "unlimited": "not live.limited",
    "due": "live.run_at <= now()",
}

# pending → running.   Guard: state, queue, task, run_at.   Index: live_job_claim.
#
# For each queue with free slots ($1, $2) that is not paused, for each priority in turn ($3), take the jobs that are due
# in the order of the index and lock them; a row that another worker has locked is passed over. Probing one priority
# after the other keeps a bound on run_at in every probe: jobs scheduled for later are never read, however many.
# Both limits are lazy: a lower priority is only probed while slots are left, so nothing is locked that is not taken.
#
# The CTE is MATERIALIZED on purpose. Written as ``where id in (select .. limit n for update skip locked)`` the planner
# may run the subquery more than once, and then claims more than n (34 for a limit of 2 have been seen).
#
# A suspect has lost $7 workers or more, and the next will be its last. A worker holds one at a time ($8: whether it may
# take one now), for were two held when it dies, the innocent one would be blamed too. Those passed over stay as they
# are: locked until the statement ends, and not taken.
#
# It begins at the low-water mark of each queue and priority ($9, $10: a row of marks for each queue, see marks.py).
#
# What is blocked or limited is not seen here. Last rows without an id say what else was seen: "groups" where jobs wait
# to be let into their groups (ADMIT; looked for from $11 on), "limits" where limited jobs wait for their turns (TURNS),
# "paused" with a queue's name, and "seen" with the clock and the transactions that were running.
#
# The fence grows here and nowhere else. Only what this worker knows is claimed ($4: each task with the highest version
# of its payload); the rest waits for one that does.
CLAIM = f"""
with taken as materialized (
    select candidate.id, candidate.lost >= $7 as suspect
    from (
        select queue, slots, n from unnest($1::text[], $2::integer[]) with ordinality as asked (queue, slots, n)
        where not exists (select from outbox.queue where name = asked.queue and paused_at is not null)
        offset 0  -- first, so that nothing of a paused queue is locked
    ) wanted
    cross join lateral (
        select due.id, due.lost
        from unnest($3::smallint[]) with ordinality as level (priority, n)
        cross join lateral (
            select live.id, live.lost
            from outbox.live_job live
            where {" and ".join(CLAIMABLE.values())}
              and live.queue = wanted.queue and live.priority = level.priority
              and (live.run_at, live.id) >=
                  (($9::timestamptz[])[wanted.n][level.n], ($10::uuid[])[wanted.n][level.n])
              and live.version <= ($4::jsonb -> live.task)::smallint and (live.lost < $7 or $8)
            order by live.run_at, live.id
            limit wanted.slots
            for update skip locked
        ) due
        limit wanted.slots
    ) candidate
), claimed as (
    update outbox.live_job live
    set state = 'running', fence = fence + 1, worker_id = $5, started_at = clock_timestamp(),
        lease_until = clock_timestamp() + make_interval(secs => $6)
    where live.id = any (array(
        select id from taken where not suspect
        union all
        (select id from taken where suspect limit 1)
    ))
    returning live.id, live.task, live.queue, live.priority, live.run_at, live.payload::text, live.attempt,
              live.max_attempts, live.fence, live.created_at, live.lost >= $7 as suspect, live.checkpoint::text,
              live.group_key, live.followed or live.batch_id is not null as followed, live.version,
              live.headers::text, date_part('epoch', live.started_at - live.run_at) as waited
)
select * from claimed
union all
select null, 'groups', null, null, null, null, null, null, null, null, null, null, null, null, null, null, null
where exists (select from outbox.live_job where blocked = 'new' and run_at <= now() and run_at >= $11)
union all
select null, 'limits', null, null, null, null, null, null, null, null, null, null, null, null, null, null, null
where exists (
    select from unnest($1::text[]) as asked (queue)
    cross join lateral (
        select from outbox.live_job live
        where live.state = 'pending' and live.blocked is null and live.limited and live.queue = asked.queue
        order by live.queue, live.task, live.limit_key, live.priority, live.run_at, live.id
        limit 1
    ) any_of_it
)
union all
select null, 'paused', name, null, null, null, null, null, null, null, null, null, null, null, null, null, null
from outbox.queue where name = any ($1::text[]) and paused_at is not null
union all
select null, 'seen', pg_current_snapshot()::text, null, now(),
       null, null, null, null, null, null, null, null, null, null, null, null
"""

# Limited jobs are claimed in turns, by four statements in one transaction (see turns.py).
#
# Whose turn is it? A turn is a task's, or a key's within it. In each queue ($1) that is not paused, with free slots
# ($2), from the turn after the last one ($3, $4) around to it, at most $7 of them, each with the number of its jobs
# that are due, up to the slots; of what the worker does not know ($5, as in CLAIM), none. From turn to turn it is one
# step in the index, whatever lies between them.
TURNS = """
with recursive asked as materialized (
    select queue, slots, task, key
    from unnest($1::text[], $2::integer[], $3::text[], $4::text[]) as asked (queue, slots, task, key)
    where not exists (select from outbox.queue where name = asked.queue and paused_at is not null)
), turn as (
    select queue, slots, task as last_task, key as last_key, task, key, false as around, 0 as n from asked
    union all
    select turn.queue, turn.slots, turn.last_task, turn.last_key, next.task, next.limit_key, next.around, turn.n + 1
    from turn
    cross join lateral (
        (
            select live.task, live.limit_key, turn.around
            from outbox.live_job live
            where live.state = 'pending' and live.blocked is null and live.limited
              and live.queue = turn.queue and (live.task, live.limit_key) > (turn.task, turn.key)
            order by live.task, live.limit_key
            limit 1
        ) union all (
            select live.task, live.limit_key, true
            from outbox.live_job live
            where live.state = 'pending' and live.blocked is null and live.limited
              and live.queue = turn.queue and not turn.around
            order by live.task, live.limit_key
            limit 1
        )
        limit 1
    ) next
    where turn.n < $7 and not (next.around and (next.task, next.limit_key) > (turn.last_task, turn.last_key))
)
select turn.queue, turn.task, turn.key, due.count::integer
from turn
cross join lateral (
    select count(*) from (
        select from unnest($6::smallint[]) as level (priority)
        cross join lateral (
            select from outbox.live_job live
            where live.state = 'pending' and live.blocked is null and live.limited
              and live.queue = turn.queue and live.task = turn.task and live.limit_key = turn.key
              and live.priority = level.priority and live.run_at <= now()
              and $5::jsonb ? turn.task and live.version <= ($5::jsonb -> turn.task)::smallint
            limit turn.slots
        ) due
        limit turn.slots
    ) counted
) due
where turn.n > 0
order by turn.queue, turn.n
"""

# How many more jobs do these limits let start? They are locked, or have no room while another worker has them.
ROOMS = """
select rule.scope, rule.name, rule.per_key, asked.key, rule.rate is not null as has_rate, given.room, given.again
from unnest($1::text[], $2::text[], $3::boolean[], $4::text[]) as asked (scope, name, per_key, key)
join outbox.job_limit rule using (scope, name, per_key)
cross join lateral outbox.limit_room(rule.scope, rule.name, rule.per_key, asked.key) given
"""

# pending → running, for limited jobs: so many ($4) of each turn ($1, $2, $3).   Index: live_job_limited.
# Else as CLAIM.
CLAIM_LIMITED = """
with taken as materialized (
    select candidate.id, candidate.lost >= $8 as suspect
    from unnest($1::text[], $2::text[], $3::text[], $4::integer[]) as turn (queue, task, key, share)
    cross join lateral (
        select due.id, due.lost
        from unnest($5::smallint[]) as level (priority)
        cross join lateral (
            select live.id, live.lost
            from outbox.live_job live
            where live.state = 'pending' and live.blocked is null and live.limited
              and live.queue = turn.queue and live.task = turn.task and live.limit_key = turn.key
              and live.priority = level.priority and live.run_at <= now() and (live.lost < $8 or $9)
              and live.version <= ($10::jsonb -> turn.task)::smallint
            order by live.run_at, live.id
            limit turn.share
            for update skip locked
        ) due
        limit turn.share
    ) candidate
)
update outbox.live_job live
set state = 'running', fence = fence + 1, worker_id = $6, started_at = clock_timestamp(),
    lease_until = clock_timestamp() + make_interval(secs => $7)
where live.id = any (array(
    select id from taken where not suspect
    union all
    (select id from taken where suspect limit 1)
))
returning live.id, live.task, live.queue, live.priority, live.run_at, live.payload::text, live.attempt,
          live.max_attempts, live.fence, live.created_at, live.lost >= $8 as suspect, live.checkpoint::text,
          live.group_key, live.followed or live.batch_id is not null as followed, live.version, live.limit_key,
          live.headers::text,
          date_part('epoch', live.started_at - live.run_at) as waited
"""

# Take tokens for the jobs that start. A bucket is the moment at which it will be full again.
SPEND = """
insert into outbox.job_bucket as bucket (scope, name, per_key, key, full_at)
select scope, name, per_key, spent.key, now() + make_interval(secs => spent.count / rule.rate)
from unnest($1::text[], $2::text[], $3::boolean[], $4::text[], $5::integer[])
    as spent (scope, name, per_key, key, count)
join outbox.job_limit rule using (scope, name, per_key)
where rule.rate is not null
on conflict (scope, name, per_key, key) do update
set full_at = greatest(bucket.full_at, clock_timestamp()) + (excluded.full_at - now())
"""

# pending → pending: from outside of a group to a place in it; the first of each group may be claimed. $1: how many,
# $2: the low-water mark of those outside.
# Jobs of a group are let in by a worker, and not by whoever enqueues them: transactions that are not committed yet can
# see nothing of each other, and must not wait for each other either.
ADMIT = "select outbox.admit($1, $2) as opened"

# Around whatever ends the turn of a job in its group, in one transaction: the group's lock, the move, the next one.
LOCK_GROUPS = "select outbox.lock_groups($1::text[])"
OPEN_GROUPS = "select outbox.open_groups($1::text[])"

# running → running.   Guard: fence.   Index: primary key.
# Answers for every claim asked about: is it still ours, and has a person asked to cancel it? A row that is locked just
# now is being settled and needs no renewal.
RENEW = """
with held as (
    select * from unnest($1::uuid[], $2::bigint[]) with ordinality as held (id, fence, n)
), locked as materialized (
    select live.id
    from held join outbox.live_job live on live.id = held.id
    where live.id = any ($1::uuid[]) and live.fence = held.fence and live.state <> 'pending'
    for update of live skip locked
), renewed as (
    update outbox.live_job live
    set lease_until = clock_timestamp() + make_interval(secs => $3)
    where live.id = any (array(select id from locked))
)
select held.n, coalesce(live.fence = held.fence and live.state <> 'pending', false) as ours,
       live.cancel_requested_at is not null as cancelled
from held left join outbox.live_job live on live.id = held.id and live.id = any ($1::uuid[])
"""

# running → running.   Guard: fence.   Index: primary key.
# What handlers have said: how far they are, and what to keep for the next attempt.
SAY = """
with said as (
    select * from unnest($1::uuid[], $2::bigint[], $3::text[], $4::text[]) as said (id, fence, progress, checkpoint)
), locked as materialized (
    select live.id, said.progress, said.checkpoint
    from said join outbox.live_job live on live.id = said.id
    where live.id = any ($1::uuid[]) and live.fence = said.fence and live.state <> 'pending'
    for update of live skip locked
)
update outbox.live_job live
set progress = coalesce(locked.progress::jsonb, live.progress),
    checkpoint = coalesce(locked.checkpoint::jsonb, live.checkpoint)
from locked
where live.id = locked.id and live.id = any ($1::uuid[])
"""

# Which of the claims that run here a person has asked to cancel. Index: primary key.
CANCELS = """
select live.id from outbox.live_job live
where live.id = any ($1::uuid[]) and live.cancel_requested_at is not null
"""

# What a job takes along from one table to the other, whatever the move.
_KEPT = """
        id, task, queue, priority, run_at, payload, max_attempts, fence, worker_id, created_at, started_at, tags, key,
        version, group_key, passable, limited, limit_key,
        tenant, batch_id, followed, headers"""

# running → succeeded | failed | cancelled.   Guard: fence.   Index: primary key.
# The row moves to the table of finished jobs in the same statement. Answers the position of each job that was settled.
FINISH = f"""
with ended as materialized (
    select mine.*, outcome.n, outcome.final, outcome.result, outcome.error, outcome.said, outcome.kept
    from unnest($1::uuid[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[]) with ordinality
        as outcome (id, fence, final, result, error, said, kept, n)
    cross join lateral (
        select live.* from outbox.live_job live
        where live.id = outcome.id and live.fence = outcome.fence and live.state <> 'pending'
        for update
    ) mine
), gone as (
    delete from outbox.live_job where id = any (array(select id from ended))
), moved as (
    insert into outbox.finished_job (
        {_KEPT}, state, attempt, lost, cancel_requested_at, progress, checkpoint, result, errors)
    select {_KEPT}, final, attempt + 1, lost, cancel_requested_at, coalesce(said::jsonb, progress),
           coalesce(kept::jsonb, checkpoint), result::jsonb,
           case when error is null then errors else outbox.append_error(errors, error::jsonb || jsonb_build_object(
               'attempt', attempt + 1, 'fence', fence, 'at', clock_timestamp(), 'worker_id', worker_id)) end
    from ended
)
select n from ended
"""

# running → succeeded, in the handler's own transaction.   Guard: fence.   Index: primary key.
# A function of the schema, since it runs on a connection without the worker's planner settings.
FINISH_HERE = "select outbox.finish(cast(:id as uuid), :fence, :result, :error, :progress, :checkpoint)"

# running → running, in a transaction of the handler's.   Guard: fence.   Index: primary key.
KEEP_HERE = "select outbox.keep(cast(:id as uuid), :fence, :checkpoint)"

# running → pending: retry, snooze, release.   Guard: fence; nobody has asked to cancel.   Index: primary key.
# A job that a person has cancelled meanwhile is left as it is: the caller then finishes it as cancelled.
POSTPONE = """
update outbox.live_job live
set state = 'pending', lease_until = null, run_at = clock_timestamp() + make_interval(secs => outcome.delay),
    blocked = case when live.passable then 'new' end,
    attempt = live.attempt + outcome.charged,
    progress = coalesce(outcome.progress::jsonb, live.progress),
    checkpoint = coalesce(outcome.checkpoint::jsonb, live.checkpoint),
    errors = case when outcome.error is null then live.errors
        else outbox.append_error(live.errors, outcome.error::jsonb || jsonb_build_object(
            'attempt', live.attempt + 1, 'fence', live.fence, 'at', clock_timestamp(), 'worker_id', live.worker_id)) end
from unnest(
    $1::uuid[], $2::bigint[], $3::double precision[], $4::smallint[], $5::text[], $6::text[], $7::text[]
) with ordinality as outcome (id, fence, delay, charged, error, progress, checkpoint, n)
where live.id = any ($1::uuid[]) and live.id = outcome.id and live.fence = outcome.fence and live.state <> 'pending'
  and live.cancel_requested_at is null
returning outcome.n
"""

# Is a lease over? Almost never, and then a rescue costs no more than this.   Index: live_job_lease_until.
ANY_EXPIRED = "select from outbox.live_job where lease_until < now() limit 1"

# running → pending | failed | cancelled, by any worker, when a lease is over.   Index: live_job_lease_until.
# A dead worker is not the job's fault: no attempt is charged. But a job that has lost $1 workers is poison and fails.
# $2: how many at most, in the order of their leases, so that no row can hide behind others for ever.
# $3: the groups whose locks are held; a job of another one does not end here.
RESCUE = f"""
with expired as materialized (
    select live.id,
           case when live.cancel_requested_at is not null then 'cancelled'
                when live.lost + 1 >= $1 then 'failed' else 'pending' end as next,
           jsonb_build_object('type', 'outbox.WorkerLost', 'attempt', live.attempt + 1, 'fence', live.fence,
               'at', clock_timestamp(), 'worker_id', live.worker_id, 'traceback', '',
               'message', 'the worker died, or was cut off, while it ran this job') as error
    from outbox.live_job live
    where live.lease_until < now() and (
        live.group_key is null or live.group_key = any ($3::text[])
        or (live.cancel_requested_at is null and live.lost + 1 < $1)
    )
    order by live.lease_until
    limit $2
    for update skip locked
), returned as (
    update outbox.live_job live
    set state = 'pending', lease_until = null, run_at = clock_timestamp(), lost = live.lost + 1,
        errors = outbox.append_error(live.errors, expired.error)
    from expired
    where live.id = any (array(select id from expired)) and live.id = expired.id and expired.next = 'pending'
), ended as (
    delete from outbox.live_job live
    using expired
    where live.id = any (array(select id from expired)) and live.id = expired.id and expired.next <> 'pending'
    returning live.*, expired.next, expired.error
), moved as (
    insert into outbox.finished_job ({_KEPT}, state, attempt, lost, cancel_requested_at, progress, checkpoint, errors)
    select {_KEPT}, next, attempt, lost + 1, cancel_requested_at, progress, checkpoint,
           outbox.append_error(errors, error)
    from ended
)
select next, count(*)::integer as count from expired group by next
"""

# The groups in which a rescue would end a job, as many as can be locked at once.   Index: live_job_lease_until.
GROUPS_TO_RESCUE = """
select unnest(outbox.try_lock_groups(array(
    select group_key from outbox.live_job
    where lease_until < now() and group_key is not null and (cancel_requested_at is not null or lost + 1 >= $1)
    order by lease_until limit $2
))) as name
"""

# What a person may do. First the row is locked, then its state is known and nobody can change it.
GROUP = "select group_key from outbox.live_job where id = :id"
LOCK_GROUP = "select outbox.lock_groups(array[cast(:group as text)])"
OPEN_GROUP = "select outbox.open_groups(array[cast(:group as text)])"
LOCK_LIVE = "select state from outbox.live_job where id = :id for update"
LOCK_FINISHED = "select state from outbox.finished_job where id = :id for update"

# pending → cancelled.   Guard: the caller holds the row's lock.
CANCEL = f"""
with ended as (
    delete from outbox.live_job where id = :id and state = 'pending' returning *
)
insert into outbox.finished_job ({_KEPT}, state, attempt, lost, cancel_requested_at, progress, checkpoint, errors)
select {_KEPT}, 'cancelled', attempt, lost, clock_timestamp(), progress, checkpoint, errors
from ended
"""

# The same for many: what waits is cancelled, the workers of what runs are asked to.
CANCEL_MANY = "select outbox.cancel_jobs(cast(:ids as uuid[]))"

# running → running: a request, which the next heartbeat carries to the worker.
REQUEST_CANCEL = """
update outbox.live_job set cancel_requested_at = coalesce(cancel_requested_at, clock_timestamp())
where id = :id and state = 'running'
"""

# pending → pending: due now, or of another priority. The position moves to now, for claims do not look at positions
# that have passed (see marks.py).
RUN_NOW = """
update outbox.live_job set run_at = clock_timestamp()
where id = any (cast(:ids as uuid[])) and state = 'pending' and run_at > now()
returning id
"""
SET_PRIORITY = """
update outbox.live_job set priority = :priority, run_at = greatest(run_at, clock_timestamp())
where id = any (cast(:ids as uuid[])) and state = 'pending' and priority <> :priority
returning id
"""

# succeeded | failed | cancelled → (nothing).
DISCARD = "delete from outbox.finished_job where id = any (cast(:ids as uuid[])) returning id"

# failed | cancelled → pending, with all its attempts before it again.   Guard: the caller holds the row's lock.
# The fence and the errors stay: a claim's number is never used twice, and history is kept. Those whose key a live job
# has, or a later one of them, are left as they are.
REQUEUE = """
with chosen as materialized (
    select distinct on (task, coalesce(key, id::text)) id from outbox.finished_job job
    where id = any (cast(:ids as uuid[])) and state in ('failed', 'cancelled') and not exists (
        select from outbox.live_job live where live.task = job.task and live.key = job.key
    )
    order by task, coalesce(key, id::text), id desc
), revived as (
    delete from outbox.finished_job where id = any (array(select id from chosen)) returning *
), recounted as (
    update outbox.batch known
    set failed = known.failed - again.failed, cancelled = known.cancelled - again.cancelled
    from (
        select batch_id, count(*) filter (where state = 'failed') as failed,
               count(*) filter (where state = 'cancelled') as cancelled
        from revived where batch_id is not null group by batch_id
    ) again
    where known.id = again.batch_id
)
insert into outbox.live_job (
    id, task, queue, priority, payload, max_attempts, fence, worker_id, created_at, started_at, errors, tags, key,
    version, checkpoint, group_key, passable, limited, limit_key, tenant, batch_id, followed,
    headers, blocked
)
select id, task, queue, priority, payload, max_attempts, fence, worker_id, created_at, started_at, errors, tags, key,
       version, checkpoint, group_key, passable, limited, limit_key, tenant, batch_id, followed,
       headers, case when group_key is not null then 'new' end
from revived
returning id
"""
