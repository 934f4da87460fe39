-- Three roles that nobody logs in as. Run it once for a database, after the migrations and as who ran them; then give
-- your own users a role: grant outbox_worker to shop_worker.
create role outbox_enqueuer nologin;
create role outbox_worker nologin;
create role outbox_api nologin;
grant usage on schema outbox to outbox_enqueuer, outbox_worker, outbox_api;

-- Who enqueues writes jobs, and sees of others only what decides whether a job may be written: no arguments, no results.
grant insert (
    id, task, queue, payload, priority, run_at, max_attempts, tags, key, group_key, passable, blocked, limit_key,
    tenant, limited, batch_id, followed, version, headers
) on outbox.live_job to outbox_enqueuer;
grant select (id, task, key, queue, state, blocked, limited), update (followed) on outbox.live_job to outbox_enqueuer;
grant insert, select (id, total, finished_at), update (total) on outbox.batch to outbox_enqueuer;
grant insert on outbox.dependency to outbox_enqueuer;
grant select, insert, update on outbox.held_key to outbox_enqueuer;
grant select on outbox.queue, outbox.job_limit to outbox_enqueuer;
grant select, insert on outbox.inbox to outbox_enqueuer;

-- A worker moves jobs, and keeps house. It makes and drops partitions by two functions, and owns no table.
grant outbox_enqueuer to outbox_worker;
grant select, insert, update, delete on outbox.live_job, outbox.job_limit, outbox.job_bucket, outbox.schedule,
    outbox.tick, outbox.worker, outbox.statistic, outbox.backlog to outbox_worker;
grant insert on outbox.finished_job to outbox_worker;
grant select, delete on outbox.finished_job_default, outbox.held_key, outbox.inbox to outbox_worker;
grant select, update, delete on outbox.batch, outbox.dependency to outbox_worker;
grant select on outbox.queue, outbox.schema_version to outbox_worker;
grant execute on function outbox.add_partition(date), outbox.drop_partition(date) to outbox_worker;

-- The API reads everything, does what operators do, and writes that down. It makes no keys.
grant outbox_enqueuer to outbox_api;
grant select on all tables in schema outbox to outbox_api;
grant insert, delete, update (priority, run_at, cancel_requested_at, blocked, limited) on outbox.live_job to outbox_api;
grant insert, update, delete on outbox.queue, outbox.job_limit, outbox.schedule to outbox_api;
grant insert, delete, update (tags) on outbox.finished_job to outbox_api;  -- to lock a row takes the right to change it
grant update on outbox.batch, outbox.dependency to outbox_api;
grant insert on outbox.audit to outbox_api;
