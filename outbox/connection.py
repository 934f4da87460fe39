"""The worker's own connections to Postgres: how they are opened, when they count as lost, and how long to wait then.

Behind a pooler in transaction mode nothing of a session is ours, and the next statement may meet another one: settings
go out with every transaction, no statement stays prepared, and nobody can listen. A connection finds out by itself.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from outbox import events
from outbox.address import dsn as dsn
from outbox.settings import WorkerSettings

# Statistics of a queue's table are always stale, and a plan made while it was empty is the wrong one a minute later.
# With these, every statement of the worker has one sensible plan left, over the index it was written for.
PLANNER = {
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "plan_cache_mode": "force_generic_plan",
    "jit_above_cost": "-1",  # jit itself is what asyncpg turns off and on again
}

# The server forgets a client whose host has vanished, and with it the client's row locks.
_KEEPALIVE = {
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}

_SESSION = {
    # A handler that blocks the event loop must not hold the locks of groups and limits for long.
    "idle_in_transaction_session_timeout": "10s",
    "default_transaction_isolation": "read committed",
    "timezone": "UTC",
}

# A pooler tells its clients numbers of its own in place of the server process they talk to. Asked in this way, since
# whatever returns a row is prepared, and would be left behind in a session that is not ours.
_IS_DIRECT = "select 1 / (pg_backend_pid() = {pid})::integer"

FAILURES = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""How a statement can fail. asyncpg raises InternalClientError when used just as the server closes the connection."""

MAX_PAUSE = 1.0
"""Seconds at most between two tries to reach a lost database."""

REMIND = 30.0
"""Seconds after which an outage that lasts is reported again."""


class Link:
    """One connection, opened when it is first needed, given up when it fails, and opened again at the next use.

    Used by one coroutine at a time.

    :param name: shown to the database's administrator as ``application_name``.
    :param timeout: seconds that any statement may take, if not as the settings say.
    :param lock_timeout: seconds that a statement may wait for a lock; unlimited unless given.
    :ivar is_pooled: whether a pooler has been found between here and the server. One in session mode counts too.
    """

    def __init__(
        self,
        url: str,
        settings: WorkerSettings,
        name: str,
        *,
        timeout: float | None = None,
        lock_timeout: float | None = None,
    ) -> None:
        self._dsn = dsn(url)
        self._timeout = timeout or settings.statement_timeout
        self._name = name
        self.is_pooled = False
        self._session = {**PLANNER, **_SESSION}
        if lock_timeout is not None:
            self._session["lock_timeout"] = f"{lock_timeout:g}s"
        self._connection: asyncpg.Connection | None = None
        self._lost_at: float | None = None
        self._told_at = 0.0
        self._failures = 0

    async def connection(self) -> asyncpg.Connection:
        """The open connection, for what needs more than a statement."""
        if self._connection is None or self._connection.is_closed():
            self._connection = await self._connect_directly() or await self._connect_through_pooler()
        return self._connection

    async def _connect_directly(self) -> asyncpg.Connection | None:
        if self.is_pooled:
            return None
        try:
            connection = await self._open(_KEEPALIVE | self._session)
        except asyncpg.ProtocolViolationError:
            return None  # PgBouncer takes no settings
        try:
            await connection.execute(_IS_DIRECT.format(pid=connection.get_server_pid()))
        except asyncpg.DivisionByZeroError:
            await connection.close(timeout=self._timeout)
            return None
        except BaseException:
            connection.terminate()
            raise
        return connection

    async def _connect_through_pooler(self) -> asyncpg.Connection:
        connection = await self._open({}, statement_cache_size=0)
        if not self.is_pooled:
            self.is_pooled = True
            events.emit(events.DEBUG, "pooler_found", link=self._name)
        return connection

    async def _open(self, settings: Mapping[str, str], **options: Any) -> asyncpg.Connection:
        return await asyncpg.connect(
            self._dsn,
            timeout=self._timeout,
            command_timeout=self._timeout,
            server_settings={**settings, "application_name": self._name},
            **options,
        )

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        """Run the statements of the block in one transaction."""
        connection = await self.connection()
        try:
            await connection.execute(self._begin())
            yield
            await connection.execute("commit")
        except asyncpg.PostgresError as exc:
            if is_lost(exc):
                self.drop()
            else:
                await self._roll_back(connection)
            raise
        except BaseException:
            self.drop()
            raise

    async def _roll_back(self, connection: asyncpg.Connection) -> None:
        try:
            await connection.execute("rollback")
        except BaseException:  # nobody knows in the middle of what it is now
            self.drop()
            raise

    def _begin(self) -> str:
        if not self.is_pooled:
            return "begin"
        # The default isolation is that of the transactions to come: this one has begun.
        return ";".join(
            [
                "begin isolation level read committed",
                *(f"set local {name} = '{value}'" for name, value in self._session.items()),
            ]
        )

    async def fetch(self, statement: str, *args: Any) -> list[asyncpg.Record]:
        """Run one statement, in a transaction of its own unless one is open."""
        connection = await self.connection()
        if self.is_pooled and not connection.is_in_transaction():
            async with self.transaction():
                return await self._fetch(connection, statement, *args)
        return await self._fetch(connection, statement, *args)

    async def _fetch(self, connection: asyncpg.Connection, statement: str, *args: Any) -> list[asyncpg.Record]:
        try:
            rows: list[asyncpg.Record] = await connection.fetch(statement, *args)
        except asyncpg.PostgresError as exc:
            if is_lost(exc):
                self.drop()
            raise
        except BaseException:  # a timeout or a cancellation leaves the connection in the middle of something
            self.drop()
            raise
        if self._lost_at is not None:
            events.emit(
                events.INFO, "database_back", link=self._name, seconds=round(time.monotonic() - self._lost_at, 1)
            )
            self._lost_at = None
        self._failures = 0
        return rows

    async def pause(self, exc: BaseException) -> None:
        """Wait after a failure, longer with each in a row; report the first, and again while it lasts."""
        now = time.monotonic()
        self._lost_at = self._lost_at or now
        if self._failures == 0 or now - self._told_at >= REMIND:
            self._told_at = now
            events.emit(events.ERROR, "database_lost", link=self._name, error=f"{type(exc).__name__}: {exc}")
        self._failures += 1
        longest = min(MAX_PAUSE, 0.05 * 2 ** min(self._failures, 10))
        await asyncio.sleep(longest * random.uniform(0.5, 1))

    def drop(self) -> None:
        """Give the connection up without a word to the other side, which may not be there."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def close(self) -> None:
        """Close the connection politely, if that takes no time."""
        if self._connection is not None:
            try:
                await self._connection.close(timeout=1)
            except FAILURES:
                self.drop()
            self._connection = None


def is_lost(exc: BaseException) -> bool:
    """Whether this failure says that the connection, not the statement, is at fault."""
    if isinstance(exc, asyncpg.PostgresError):
        state = exc.sqlstate or ""
        # Connection failures, shutdown and crash, too many connections, and a primary that has become a standby.
        return (state[:2] in ("08", "53", "57") and state != "57014") or state == "25006"
    # asyncpg's refusal to encode a value is an InterfaceError too; that is the statement's fault.
    return isinstance(exc, FAILURES) and not isinstance(exc, ValueError)
