"""Version 2 of the ``outbox`` schema: keys, versions of payloads, and checkpoints."""

from outbox.schema import v1

_COMMENTS = {
    "key": "what makes the job unique among the live ones of its task; null: nothing does",
    "version": "version of the payload; a worker claims only those that its own code can read",
    "checkpoint": "what the handler last said to keep for its next attempt",
}

_COLUMNS = "key text, version smallint not null default 1, checkpoint jsonb"

_ADD = ", ".join(f"add column {column}" for column in _COLUMNS.split(", "))
_DROP = ", ".join(f"drop column {name}" for name in _COMMENTS)

UP = (
    f"alter table outbox.live_job {_ADD}",
    f"alter table outbox.finished_job {_ADD}",
    *(
        f"comment on column outbox.{table}.{column} is '{meaning}'"
        for table in ("live_job", "finished_job")
        for column, meaning in _COMMENTS.items()
    ),
    "create or replace view outbox.job as " + v1.both_tables(*_COMMENTS),
    "insert into outbox.schema_version (version) values (2)",
)

DOWN = (
    "delete from outbox.schema_version where version = 2",
    "drop view outbox.job",
    f"alter table outbox.finished_job {_DROP}",
    f"alter table outbox.live_job {_DROP}",
    "create view outbox.job as " + v1.both_tables(),
    v1.VIEW_COMMENT,
)
