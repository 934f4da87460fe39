"""What is wrong with the database or the workers, as far as it concerns jobs, and what to do about each of it.

Reads only, and needs no rights beyond those of the application; what it may not see it leaves out.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from outbox.schema import LATEST

Level = Literal["ok", "warning", "problem"]

HELD = 60
"""Seconds from which on a transaction that keeps vacuum from cleaning up is worth a word."""

SKEW = 2.0
"""Seconds by which clocks may differ; schedules and certificates suffer before jobs do, which have the database's."""

SETTINGS = (
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "autovacuum",
    "max_connections",
    "idle_in_transaction_session_timeout",
    "statement_timeout",
    "default_transaction_isolation",
    "server_version",
    "TimeZone",
)


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check has found.

    :ivar check: its name, for programs.
    :ivar text: what there is to say, for people.
    :ivar fix: what to do; empty where nothing is to be done.
    """

    check: str
    level: Level
    text: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting of the database that concerns jobs, and who has set it."""

    name: str
    value: str
    source: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All that was found, the worst first."""

    findings: Sequence[Finding]
    settings: Sequence[Setting]

    @property
    def level(self) -> Level:
        """The worst of all."""
        return self.findings[0].level if self.findings else "ok"


Check = Callable[[AsyncConnection], Awaitable[list[Finding]]]


async def diagnose(connection: AsyncConnection) -> Diagnosis:
    """Look at everything; one check that fails is a finding, and the others go on."""
    findings: list[Finding] = []
    for check in CHECKS if await _is_there(connection) else WITHOUT_SCHEMA:
        try:
            async with connection.begin_nested():
                findings += await check(connection)
        except Exception as exc:  # noqa: BLE001 - whatever is wrong is what people want to know
            name = check.__name__.strip("_")
            findings.append(Finding(name, "warning", f"could not be checked: {type(exc).__name__}"))
    order = ("problem", "warning", "ok")
    return Diagnosis(sorted(findings, key=lambda each: order.index(each.level)), await _settings(connection))


async def _settings(connection: AsyncConnection) -> list[Setting]:
    statement = (
        "select name, current_setting(name) as value, source from pg_settings where name = any (:names) order by 1"
    )
    rows = await connection.execute(text(statement), {"names": list(SETTINGS)})
    return [Setting(row.name, row.value, row.source) for row in rows]


async def _schema(connection: AsyncConnection) -> list[Finding]:
    if not await _is_there(connection):
        fix = "Migrate: alembic upgrade head, or outbox migrate."
        return [Finding("schema", "problem", "This database has no outbox schema.", fix)]
    version = (await connection.execute(text("select max(version) from outbox.schema_version"))).scalar()
    if version == LATEST:
        return [Finding("schema", "ok", f"The outbox schema has version {version}, as this release needs.")]
    if (version or 0) < LATEST:
        fix = "Migrate: alembic upgrade head, or outbox migrate."
        return [Finding("schema", "problem", f"The outbox schema has version {version}; {LATEST} is needed.", fix)]
    fix = "Upgrade the library before it is used with this database."
    return [Finding("schema", "problem", f"The outbox schema has version {version}; {LATEST} is known here.", fix)]


async def _is_there(connection: AsyncConnection) -> bool:
    """Whether there is any outbox schema."""
    found = await connection.execute(text("select to_regclass('outbox.schema_version') is not null"))
    return bool(found.scalar())


async def _durability(connection: AsyncConnection) -> list[Finding]:
    row = (
        await connection.execute(
            text(
                "select current_setting('fsync') as fsync, current_setting('synchronous_commit') as commit, "
                "current_setting('full_page_writes') as pages"
            )
        )
    ).one()
    if row.fsync == "off" or row.pages == "off":
        what = "fsync" if row.fsync == "off" else "full_page_writes"
        fix = f"Set {what} = on, unless these data may be lost as a whole."
        return [Finding("durability", "problem", f"{what} is off: a power cut can spoil the whole database.", fix)]
    if row.commit == "off":
        said = "synchronous_commit is off: what was committed in the last second can be lost in a crash, jobs included."
        return [Finding("durability", "warning", said, "Set synchronous_commit = on for transactions that enqueue.")]
    return [Finding("durability", "ok", "What is committed stays: fsync and synchronous_commit are on.")]


async def _horizon(connection: AsyncConnection) -> list[Finding]:
    """Who keeps vacuum from removing what is gone."""
    rows = await connection.execute(
        text(
            """
            select 'session ' || pid as who, coalesce(nullif(application_name, ''), usename::text, '') as name,
                   extract(epoch from clock_timestamp() - xact_start)::bigint as seconds, state,
                   left(query, 80) as query, format('select pg_terminate_backend(%s);', pid) as fix
            from pg_stat_activity
            where backend_xmin is not null and pid <> pg_backend_pid() and backend_type = 'client backend'
              and xact_start < clock_timestamp() - make_interval(secs => :held)
            union all
            select 'prepared transaction ' || gid, owner::text,
                   extract(epoch from clock_timestamp() - prepared)::bigint, 'prepared', '',
                   format('rollback prepared %L;', gid)
            from pg_prepared_xacts where prepared < clock_timestamp() - make_interval(secs => :held)
            union all
            select 'replication slot ' || slot_name, coalesce(plugin, slot_type), null,
                   case when active then 'active' else 'inactive' end, '',
                   format('select pg_drop_replication_slot(%L);', slot_name)
            from pg_replication_slots where (xmin is not null or catalog_xmin is not null) and not active
            order by seconds desc nulls last limit 20
            """
        ),
        {"held": HELD},
    )
    findings = [
        Finding(
            "horizon",
            "warning",
            f"{row.who} ({row.name}, {row.state}) has kept vacuum from cleaning up"
            + (f" for {row.seconds:,} s" if row.seconds is not None else "")
            + (f": {row.query}" if row.query else "."),
            f"End it if nobody needs it: {row.fix}",
        )
        for row in rows
    ]
    return findings or [Finding("horizon", "ok", "Nobody keeps vacuum from cleaning up.")]


async def _bloat(connection: AsyncConnection) -> list[Finding]:
    row = (
        await connection.execute(
            text(
                """
                select n_live_tup as live, n_dead_tup as dead, pg_table_size(relid) as size,
                       pg_indexes_size(relid) as indexes, greatest(last_vacuum, last_autovacuum) as vacuumed
                from pg_stat_user_tables where relid = 'outbox.live_job'::regclass
                """
            )
        )
    ).one()
    size = f"{(row.size + row.indexes) / 1e6:,.0f} MB"
    if row.dead > max(100_000, 5 * row.live):
        fix = (
            "See who holds vacuum up; then: vacuum (analyze) outbox.live_job. If it stays large: reindex and repack it."
        )
        said = f"outbox.live_job has {row.dead:,} dead rows beside {row.live:,} live ones ({size})."
        return [Finding("bloat", "warning", said, fix)]
    return [Finding("bloat", "ok", f"outbox.live_job is in shape: {row.live:,} rows, {row.dead:,} dead, {size}.")]


async def _autovacuum(connection: AsyncConnection) -> list[Finding]:
    on = (await connection.execute(text("select current_setting('autovacuum')"))).scalar()
    if on == "off":
        return [
            Finding("autovacuum", "problem", "autovacuum is off: tables of jobs grow for ever.", "Set autovacuum = on.")
        ]
    return []


async def _indexes(connection: AsyncConnection) -> list[Finding]:
    names = (
        await connection.execute(
            text(
                "select c.relname from pg_index i join pg_class c on c.oid = i.indexrelid "
                "where not i.indisvalid and c.relnamespace = 'outbox'::regnamespace"
            )
        )
    ).scalars()
    return [
        Finding(
            "indexes", "problem", f"Index outbox.{name} is not valid.", f'reindex index concurrently outbox."{name}";'
        )
        for name in names
    ]


async def _connections(connection: AsyncConnection) -> list[Finding]:
    row = (
        await connection.execute(
            text(
                "select count(*) as used, current_setting('max_connections')::integer as most "
                "from pg_stat_activity where backend_type = 'client backend'"
            )
        )
    ).one()
    said = f"{row.used} of {row.most} connections are taken."
    if row.used > 0.8 * row.most:
        fix = "Put PgBouncer in front of the database, use smaller pools, or raise max_connections."
        return [Finding("connections", "warning", said, fix)]
    return [Finding("connections", "ok", said)]


async def _pooler(connection: AsyncConnection) -> list[Finding]:
    raw: Any = (await connection.get_raw_connection()).driver_connection
    known = getattr(raw, "get_server_pid", None)
    pid = (await connection.execute(text("select pg_backend_pid()"))).scalar()
    if known is None or known() == pid:
        return [Finding("pooler", "ok", "The database is reached directly.")]
    said = "A connection pooler is between here and the database: workers behind it cannot hear hints, and poll."
    return [Finding("pooler", "ok", said, "For a millisecond's latency give workers the database's own address.")]


async def _clock(connection: AsyncConnection) -> list[Finding]:
    before = time.time()
    there = (await connection.execute(text("select extract(epoch from clock_timestamp())::float"))).scalar_one()
    after = time.time()
    skew = max(before - there, there - after, 0.0)
    if skew > SKEW:
        said = f"The clocks of this host and of the database differ by {skew:,.1f} s; jobs go by the database's."
        return [Finding("clock", "warning", said, "Set up NTP on both.")]
    return [Finding("clock", "ok", "The clocks of this host and of the database agree.")]


async def _leases(connection: AsyncConnection) -> list[Finding]:
    count = (
        await connection.execute(
            text(
                "select count(*) from (select from outbox.live_job "
                "where lease_until < clock_timestamp() - interval '1 minute' limit 1000) expired"
            )
        )
    ).scalar_one()
    if count:
        said = f"{count:,} jobs have been without their worker for a minute or more, and nobody has rescued them."
        return [Finding("leases", "problem", said, "Start a worker; any one does it for all.")]
    return [Finding("leases", "ok", "No job waits for a worker that is gone.")]


async def _workers(connection: AsyncConnection) -> list[Finding]:
    count = (
        await connection.execute(
            text("select count(*) from outbox.worker where seen_at > clock_timestamp() - make_interval(secs => lease)")
        )
    ).scalar_one()
    if not count:
        return [
            Finding("workers", "problem", "No worker is up.", "Start one: outbox worker MODULE:NAME -q default:10.")
        ]
    return [Finding("workers", "ok", f"{count:,} workers are up.")]


async def _unserved(connection: AsyncConnection) -> list[Finding]:
    rows = await connection.execute(
        text(
            """
            select task, queue, count(*) as count from (
                select task, queue, version from outbox.live_job
                where state = 'pending' and blocked is null and run_at <= now() limit 10000
            ) waiting
            where not exists (
                select from outbox.worker
                where seen_at > clock_timestamp() - make_interval(secs => lease) and queues ? waiting.queue
                  and (tasks ->> waiting.task)::integer >= waiting.version
            )
            group by task, queue order by count desc limit 20
            """
        )
    )
    return [
        Finding(
            "unserved",
            "problem",
            f"{row.count:,} jobs of task {row.task!r} wait in queue {row.queue!r}, and no worker would take them.",
            f"Start a worker whose code declares {row.task!r}, with -q {row.queue}.",
        )
        for row in rows
    ]


async def _partitions(connection: AsyncConnection) -> list[Finding]:
    row = (
        await connection.execute(
            text(
                """
                select exists (select from outbox.finished_job_default) as strays,
                       to_regclass('outbox.' || outbox.partition_name((now() at time zone 'UTC')::date + 1)) is not null
                           as tomorrow
                """
            )
        )
    ).one()
    findings = []
    if not row.tomorrow:
        said = "There is no partition for the jobs that end tomorrow."
        findings.append(Finding("partitions", "warning", said, "Start a worker; any one makes it."))
    if row.strays:
        said = "Some finished jobs are in the default partition, from a day that had none when they ended."
        findings.append(
            Finding("partitions", "warning", said, "Nothing: they are pruned row by row, which takes longer.")
        )
    return findings or [Finding("partitions", "ok", "The partitions of the coming days are there.")]


CHECKS: Sequence[Check] = (
    _schema,
    _durability,
    _autovacuum,
    _horizon,
    _bloat,
    _indexes,
    _connections,
    _pooler,
    _clock,
    _workers,
    _leases,
    _unserved,
    _partitions,
)

WITHOUT_SCHEMA: Sequence[Check] = (_schema, _durability, _autovacuum, _horizon, _connections, _pooler, _clock)
"""Those that look at no table of the outbox."""
