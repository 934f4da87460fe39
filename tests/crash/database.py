"""One test's database: the recorder in it, and what the test wants to know of it."""

import asyncio
import json
import os
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import asyncpg
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool

from outbox import enqueue
from outbox.connection import dsn
from outbox.migrate import migrate
from outbox.newjob import NewJob
from tests.crash.history import Change, History, Job, Ledger, Row, Run
from tests.waiting import eventually

Report = Callable[..., None]
"""Puts figures on record."""

WRITER = "crash.writer"
"""A setting of each worker's sessions, put into its URL, by which the recorder knows who wrote."""

PATIENCE = float(os.environ.get("OUTBOX_TEST_PATIENCE", "90"))
"""Seconds until waiting for something that must come is given up."""

# Statement by statement what became of each row, with who did it. Both tables: a job that ends moves from one to the
# other. The sequence is drawn while the row is locked, so for any one job it is the order of commits.
RECORDER = """
create schema crash;
create table crash.orders (id uuid primary key default gen_random_uuid(), job uuid not null);
create table crash.history (
    seq bigint generated always as identity primary key,
    tx bigint not null default pg_current_xact_id()::text::bigint,
    now timestamptz not null default now(),
    at timestamptz not null default clock_timestamp(),
    writer text not null default coalesce(current_setting('crash.writer', true), ''),
    job uuid not null,
    before jsonb,
    after jsonb
);
create function crash.record() returns trigger language plpgsql as $$
begin
    insert into crash.history (job, before, after) values (
        coalesce(new.id, old.id),
        case when tg_op <> 'INSERT' then jsonb_build_object('state', old.state, 'fence', old.fence,
            'attempt', old.attempt, 'lost', old.lost, 'lease_until', old.lease_until) end,
        case when tg_op <> 'DELETE' then jsonb_build_object('state', new.state, 'fence', new.fence,
            'attempt', new.attempt, 'lost', new.lost, 'lease_until', new.lease_until) end
    );
    return null;
end
$$;
create trigger recorder after insert or delete on outbox.live_job
    for each row execute function crash.record();
create trigger recorder_of_moves after update on outbox.live_job  -- to wait elsewhere is no move
    for each row when (old.blocked is not distinct from new.blocked or old.state <> new.state)
    execute function crash.record();
create trigger recorder after insert or update or delete on outbox.finished_job
    for each row execute function crash.record();
"""


class Database:
    """A database with the library's schema and the recorder. Its own connection comes back after an outage.

    :param folder: where handlers log, and where gates are opened.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.log = folder / "runs.jsonl"
        self.gates = folder / "gates"
        self.gates.mkdir()
        self.engine: AsyncEngine = create_async_engine(url, poolclass=NullPool)
        self._connection: asyncpg.Connection | None = None
        self._lock = asyncio.Lock()

    def url_for(self, writer: str, *, port: int | None = None) -> str:
        """The address for one worker, maybe through a proxy on another port."""
        url = make_url(self.url).set(drivername="postgresql")
        url = url.set(port=port or url.port).update_query_dict({WRITER: writer})
        return url.render_as_string(hide_password=False)

    async def prepare(self) -> None:
        """Make the schema, and the recorder in it."""
        await migrate(self.url)
        await self.execute(RECORDER)

    async def fetch(self, statement: str, *args: Any) -> list[asyncpg.Record]:
        """Run one statement; a lost connection is replaced at the next."""
        async with self._lock:
            rows: list[asyncpg.Record] = await (await self._connected()).fetch(statement, *args)
            return rows

    async def execute(self, statements: str) -> None:
        """Run statements that answer nothing."""
        async with self._lock:
            await (await self._connected()).execute(statements)

    async def _connected(self) -> asyncpg.Connection:
        if self._connection is None or self._connection.is_closed():
            self._connection = await asyncpg.connect(dsn(self.url), timeout=10, command_timeout=30)
        return self._connection

    async def enqueue(self, *jobs: NewJob) -> None:
        """Commit these jobs."""
        async with AsyncSession(self.engine) as session:
            for job in jobs:
                enqueue.add(session, job)
            await session.commit()

    async def value(self, statement: str, *args: Any) -> Any:
        """The only column of the only row."""
        return (await self.fetch(statement, *args))[0][0]

    async def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.terminate()

    async def job(self, id: object) -> asyncpg.Record:
        """The job as it is now."""
        return (await self.fetch("select * from outbox.job where id = $1::text::uuid", str(id)))[0]

    async def state(self, id: object) -> str:
        """Its state now."""
        return str((await self.job(id))["state"])

    async def reaches(self, id: object, state: str, *, fence: int | None = None) -> asyncpg.Record:
        """The job, as soon as it is in this state (under this fence)."""

        async def ask() -> asyncpg.Record | None:
            job = await self.job(id)
            return job if job["state"] == state and fence in (None, job["fence"]) else None

        return await eventually(ask, within=PATIENCE)

    async def comes_to_rest(self) -> None:
        """Return when no job is left that waits or runs."""

        async def ask() -> bool:
            return not await self.value("select count(*) from outbox.live_job")

        await eventually(ask, within=PATIENCE)

    def runs(self) -> list[Run]:
        """What handlers have said so far."""
        if not self.log.exists():
            return []
        return [Run(**json.loads(line)) for line in self.log.read_text().splitlines()]

    def started(self, id: object, *, fence: int | None = None, worker: str | None = None) -> bool:
        """Whether the job's handler has started (under this fence, in this worker)."""
        return any(
            run.what == "start" and run.job == str(id) and fence in (None, run.fence) and worker in (None, run.worker)
            for run in self.runs()
        )

    def open_gate(self, id: object, *, fence: int | None = None) -> None:
        """Let the job's handler end, under any fence or only under this one."""
        (self.gates / (str(id) if fence is None else f"{id}.{fence}")).touch()

    async def history(self, ledger: Ledger | None = None) -> History:
        """Everything that was recorded, for the checker."""
        changes = await self.fetch("select * from crash.history order by seq")
        jobs = await self.fetch("select * from outbox.job")
        orders = await self.fetch("select job from crash.orders")
        return History(
            changes=[
                Change(
                    seq=row["seq"],
                    tx=row["tx"],
                    job=str(row["job"]),
                    before=_row(row["before"]),
                    after=_row(row["after"]),
                    writer=row["writer"],
                    now=row["now"],
                )
                for row in changes
            ],
            runs=self.runs(),
            jobs=[_job(row) for row in jobs],
            ledger=ledger or Ledger(),
            orders=frozenset(str(row["job"]) for row in orders),
        )


def _row(stored: str | None) -> Row | None:
    if stored is None:
        return None
    values = json.loads(stored)
    lease = values.pop("lease_until")
    return Row(**values, lease_until=datetime.fromisoformat(lease) if lease else None)


def _job(row: Mapping[str, Any]) -> Job:
    errors = json.loads(row["errors"] or "[]")
    return Job(
        id=str(row["id"]),
        row=Row(
            state=row["state"],
            fence=row["fence"],
            attempt=row["attempt"],
            lost=row["lost"],
            lease_until=row["lease_until"],
        ),
        max_attempts=row["max_attempts"],
        result=json.loads(row["result"]) if row["result"] else None,
        error=errors[-1]["type"] if errors else None,
    )
