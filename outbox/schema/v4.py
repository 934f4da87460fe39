"""Version 4 of the ``outbox`` schema: jobs carry along the trace in which they were enqueued."""

from outbox.schema import door, flow, v1, v2, v3

MAX_HEADERS = 8192
"""Characters of JSON."""

_MEANING = "what it carries along from where it was enqueued, by name: traceparent, tracestate, baggage; null: nothing"


def _functions(*, headers: bool) -> tuple[str, ...]:
    """Whatever moves whole rows names all of their columns."""
    kept = flow.KEPT + (", headers" if headers else "")
    return (
        "drop function outbox.enqueue",
        door.enqueue(headers=headers),
        door.COMMENT,
        flow.cancel_batch(kept),
        flow.call_back(headers=headers),
        flow.job_ended(kept),
        v2.finish(headers=headers),
        v3.cancel_jobs(kept),
    )


# Who was given the columns of jobs one by one (see docs/roles.md) must be able to write the new one, or could not
# enqueue any more.
_GRANT = """
    do $$
    declare
        writer text;
    begin
        for writer in
            select case given.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(given.grantee)) end
            from pg_attribute, aclexplode(attacl) as given
            where attrelid = 'outbox.live_job'::regclass and attname = 'version' and given.privilege_type = 'INSERT'
        loop
            execute 'grant insert (headers) on outbox.live_job to ' || writer;
        end loop;
    end
    $$
    """

UP = (
    "alter table outbox.live_job add column headers jsonb",
    _GRANT,
    "alter table outbox.finished_job add column headers jsonb",
    f"comment on column outbox.live_job.headers is '{_MEANING}'",
    f"comment on column outbox.finished_job.headers is '{_MEANING}'",
    f"""
    alter table outbox.live_job add constraint live_job_headers
        check (jsonb_typeof(headers) = 'object' and length(headers::text) <= {MAX_HEADERS})
    """,
    "create or replace view outbox.job as " + v1.both_tables(*v2.COLUMNS, "headers"),
    *_functions(headers=True),
    "insert into outbox.schema_version (version) values (4)",
)

DOWN = (
    "delete from outbox.schema_version where version = 4",
    *_functions(headers=False),
    "drop view outbox.job",
    "alter table outbox.live_job drop constraint live_job_headers",
    "alter table outbox.finished_job drop column headers",
    "alter table outbox.live_job drop column headers",
    "create view outbox.job as " + v1.both_tables(*v2.COLUMNS),
    v1.VIEW_COMMENT,
)
