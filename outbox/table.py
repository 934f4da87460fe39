"""The tables as SQLAlchemy sees them: for reading, and for a host's ``target_metadata``.

The DDL itself is in ``schema``; a test compares the two.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Index,
    MetaData,
    SmallInteger,
    Table,
    Text,
    column,
    table,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, UUID
from sqlalchemy.sql.expression import TableClause

SCHEMA = "outbox"

metadata = MetaData(schema=SCHEMA)


def _job_columns() -> list[Column[object]]:
    clock = text("clock_timestamp()")
    return [
        Column("task", Text, nullable=False),
        Column("queue", Text, nullable=False, server_default=text("'default'")),
        Column("state", Text, nullable=False, server_default=text("'pending'")),
        Column("priority", SmallInteger, nullable=False, server_default=text("1")),
        Column("run_at", DateTime(timezone=True), nullable=False, server_default=clock),
        Column("payload", JSONB, nullable=False, server_default=text("'{}'")),
        Column("attempt", SmallInteger, nullable=False, server_default=text("0")),
        Column("max_attempts", SmallInteger),
        Column("lost", SmallInteger, nullable=False, server_default=text("0")),
        Column("fence", BigInteger, nullable=False, server_default=text("0")),
        Column("worker_id", UUID),
        Column("lease_until", DateTime(timezone=True)),
        Column("created_at", DateTime(timezone=True), nullable=False, server_default=clock),
        Column("started_at", DateTime(timezone=True)),
        Column("cancel_requested_at", DateTime(timezone=True)),
        Column("progress", JSONB),
        Column("errors", JSONB),
        Column("tags", JSONB),
    ]


def _later_columns() -> list[Column[object]]:
    return [
        Column("key", Text),
        Column("version", SmallInteger, nullable=False, server_default=text("1")),
        Column("checkpoint", JSONB),
        Column("group_key", Text),
        Column("passable", Boolean, nullable=False, server_default=text("false")),
        Column("limited", Boolean, nullable=False, server_default=text("false")),
        Column("limit_key", Text, nullable=False, server_default=text("''")),
        Column("tenant", Text),
        Column("batch_id", UUID),
        Column("followed", Boolean, nullable=False, server_default=text("false")),
        Column("blocked", Text),
        Column("headers", JSONB),
    ]


live_job = Table(
    "live_job",
    metadata,
    Column("id", UUID, primary_key=True, server_default=text("outbox.uuid7()")),
    *_job_columns(),
    *_later_columns(),
    Index(
        "live_job_claim",
        "queue",
        "priority",
        "run_at",
        "id",
        postgresql_where=text("(state = 'pending') and (blocked is null) and (not limited)"),
    ),
    Index(
        "live_job_limited",
        "queue",
        "task",
        "limit_key",
        "priority",
        "run_at",
        "id",
        postgresql_where=text("(state = 'pending') and (blocked is null) and limited"),
    ),
    Index("live_job_of_task", "task", "limit_key", postgresql_where=text("(lease_until is not null) and limited")),
    Index("live_job_of_queue", "queue", "limit_key", postgresql_where=text("(lease_until is not null) and limited")),
    Index(
        "live_job_open",
        "group_key",
        unique=True,
        postgresql_where=text("(group_key is not null) and (blocked is null)"),
    ),
    Index(
        "live_job_group",
        "group_key",
        "id",
        postgresql_where=text("(group_key is not null) and (blocked = any (array['new', 'group']))"),
    ),
    Index("live_job_batch", "batch_id", "id", postgresql_where=text("batch_id is not null")),
    Index("live_job_new", "run_at", postgresql_where=text("blocked = 'new'")),
    Index("live_job_key", "task", "key", unique=True, postgresql_where=text("key is not null")),
    Index("live_job_lease_until", "lease_until", postgresql_where=text("lease_until is not null")),
)

finished_job = Table(
    "finished_job",
    metadata,
    Column("id", UUID, primary_key=True),
    *_job_columns(),
    Column("result", JSONB),
    Column("finished_at", DateTime(timezone=True), primary_key=True, server_default=text("now()")),
    *_later_columns(),
    Index("finished_job_trouble", "id", postgresql_where=text("state <> 'succeeded'")),
    Index("finished_job_tenant", "tenant", "id", postgresql_where=text("tenant is not null")),
    Index("finished_job_group", "group_key", "id", postgresql_where=text("group_key is not null")),
    Index("finished_job_key", "key", "id", postgresql_where=text("key is not null")),
    Index("finished_job_batch", "batch_id", "id", postgresql_where=text("batch_id is not null")),
    postgresql_partition_by="range (finished_at)",
)

job: TableClause = table("job", *(column(each.name, each.type) for each in finished_job.columns), schema=SCHEMA)
"""The view over both."""
