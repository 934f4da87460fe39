"""Alembic's entry: one history, one transaction, one migrator at a time.

A migration that waits for a lock makes everybody behind it wait too. So it waits two seconds at most, gives way by
rolling back, and tries again a little later.
"""

import asyncio
import random
from logging.config import fileConfig
from typing import Any, Final

from alembic import context
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from api import models
from api.settings import get_settings
from outbox import address, schema, table

TRIES: Final = 8
LOCK_NOT_AVAILABLE: Final = "55P03"
DEADLOCK: Final = "40P01"

target_metadata: Final = [table.metadata, models.metadata]


def include_name(name: str | None, kind: str, _parents: object) -> bool:
    """The schema ``outbox`` changes by the library's own DDL, never by autogenerate."""
    return kind != "schema" or name in (None, "public")


def include_object(what: Any, _name: str | None, _kind: str, _reflected: bool, _compare_to: object) -> bool:
    """As ``include_name``, for what is not in the database but in the metadata."""
    owner = getattr(what, "table", what)
    return getattr(owner, "schema", None) != table.SCHEMA


OPTIONS: Final[dict[str, Any]] = {
    "target_metadata": target_metadata,
    "include_schemas": True,
    "include_name": include_name,
    "include_object": include_object,
}


def migrate(connection: Connection) -> None:
    """Run what is to be run, in one transaction."""
    context.configure(connection=connection, **OPTIONS)
    with context.begin_transaction():
        # The lock first and without a limit, for waiting for another migrator hinders nobody.
        connection.execute(text("select pg_advisory_xact_lock(:key)"), {"key": schema.LOCK_KEY})
        connection.execute(text("set local lock_timeout = '2s'"))
        context.run_migrations()


async def migrate_online() -> None:
    """Migrate the database of DATABASE_URL; give way to others' locks, up to eight times."""
    engine = address.engine(get_settings().database_url, poolclass=NullPool)
    for attempt in range(1, TRIES + 1):
        try:
            async with engine.connect() as connection:
                await connection.run_sync(migrate)
                return
        except DBAPIError as exc:
            if getattr(exc.orig, "sqlstate", None) not in (LOCK_NOT_AVAILABLE, DEADLOCK) or attempt == TRIES:
                raise
            await asyncio.sleep(random.uniform(0.5, 1) * min(2.0**attempt, 30))


if context.config.config_file_name is not None and context.config.attributes.get("configure_logging", True):
    fileConfig(context.config.config_file_name, disable_existing_loggers=False)

if context.is_offline_mode():
    context.configure(dialect_name="postgresql", literal_binds=True, **OPTIONS)
    with context.begin_transaction():
        context.run_migrations()
elif (connection := context.config.attributes.get("connection")) is not None:
    migrate(connection)
else:
    asyncio.run(migrate_online())
