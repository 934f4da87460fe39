"""Bring a database's ``outbox`` schema to this release's version, for hosts that have no Alembic."""

import asyncio
import random

import asyncpg

from outbox import connection, schema
from outbox.errors import SchemaMismatch

TRIES = 10


async def migrate(url: str) -> tuple[int, int]:
    """Apply the versions that are missing, all or none. Two at once do no harm: one waits, then finds nothing to do.

    :return: the version before and after.
    :raises SchemaMismatch: if the database is ahead of this release, or stays locked by others.
    """
    link = await asyncpg.connect(connection.dsn(url), timeout=10, statement_cache_size=0)  # there may be a pooler
    try:
        for attempt in range(TRIES):
            try:
                return await _apply(link)
            except asyncpg.LockNotAvailableError:
                # Waiting longer for the lock would make everybody else wait behind us.
                await asyncio.sleep(random.uniform(0.2, 1) * (attempt + 1))
        raise SchemaMismatch("other transactions hold locks on the outbox tables; end them and try again")
    finally:
        await link.close()


async def _apply(link: asyncpg.Connection) -> tuple[int, int]:
    async with link.transaction():
        await link.execute("select pg_advisory_xact_lock($1)", schema.LOCK_KEY)
        await link.execute("set local lock_timeout = '2s'")
        before = await installed(link)
        if before > schema.LATEST:
            raise SchemaMismatch(
                f"the database holds version {before}, this release knows {schema.LATEST}: upgrade the library"
            )
        if before < schema.LATEST:
            statements: list[str] = []
            schema.upgrade(statements.append, from_=before, to=schema.LATEST)
            for statement in statements:
                await link.execute(statement)
        return before, schema.LATEST


async def installed(link: asyncpg.Connection) -> int:
    """The version of the schema in the database; 0 if it is not there."""
    if await link.fetchval("select to_regclass('outbox.schema_version')") is None:
        return 0
    return int(await link.fetchval("select coalesce(max(version), 0) from outbox.schema_version"))
