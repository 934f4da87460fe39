"""Keys to the HTTP API: made here, shown once, and stored as a digest that opens nothing."""

import hashlib
import hmac
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from outbox.backoff import seconds
from outbox.errors import KeyNotFound
from outbox.newjob import MAX_NAME, is_name

MARK = "obx_"
"""What every key begins with, for those who search for leaked ones."""

_PREFIX_BYTES = 6
_SECRET_BYTES = 32


class Scope(StrEnum):
    """What a caller may do. Each but the first two includes those before it that it needs: see ``INCLUDED``."""

    ENQUEUE = "enqueue"
    READ = "read"
    READ_PAYLOAD = "read:payload"
    OPERATE = "operate"
    ADMIN = "admin"


INCLUDED = {
    Scope.ENQUEUE: frozenset({Scope.ENQUEUE}),
    Scope.READ: frozenset({Scope.READ}),
    Scope.READ_PAYLOAD: frozenset({Scope.READ, Scope.READ_PAYLOAD}),
    Scope.OPERATE: frozenset({Scope.READ, Scope.OPERATE}),
    Scope.ADMIN: frozenset(Scope),
}
"""What each scope opens."""

_COLUMNS = "id, name, prefix, scopes, tenant, created_at, expires_at, revoked_at"
_CREATE = text(
    f"""
    insert into outbox.api_key (name, prefix, digest, scopes, tenant, expires_at)
    values (:name, :prefix, :digest, cast(:scopes as text[]), :tenant,
            clock_timestamp() + make_interval(secs => :expires_in))
    returning {_COLUMNS}
    """
)
_FIND = text(
    f"""
    select digest, {_COLUMNS} from outbox.api_key
    where prefix = :prefix and revoked_at is null and (expires_at is null or expires_at > clock_timestamp())
    """
)
_REVOKE = text(
    f"""
    update outbox.api_key set revoked_at = coalesce(revoked_at, clock_timestamp())
    where id::text = :key or prefix = :key returning {_COLUMNS}
    """
)
_ALL = text(f"select {_COLUMNS} from outbox.api_key order by id")


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key as it is known after it was made: not the key itself.

    :ivar prefix: what it begins with.
    :ivar tenant: whose jobs it sees; None for those of everybody.
    """

    id: UUID
    name: str
    prefix: str
    scopes: frozenset[Scope]
    tenant: str | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


async def create(
    connection: AsyncSession | AsyncConnection,
    name: str,
    scopes: Collection[Scope],
    *,
    tenant: str | None = None,
    expires_in: float | timedelta | None = None,
) -> tuple[ApiKey, str]:
    """Make a key, with the caller's transaction.

    :param name: whose it is, for people and for the audit.
    :param expires_in: seconds or a timedelta from now; it lasts until it is revoked unless given.
    :return: what is known of it, and the key itself, which nobody can find out again.
    :raises ValueError: if the name, a scope or the tenant is none.
    """
    if not is_name(name):
        raise ValueError(f"name: must be 1 to {MAX_NAME} printable characters")
    if tenant is not None and not is_name(tenant):
        raise ValueError(f"tenant: must be 1 to {MAX_NAME} printable characters")
    if not scopes:
        raise ValueError(f"scopes: is empty; name some of {', '.join(Scope)}")
    prefix = MARK + secrets.token_hex(_PREFIX_BYTES)
    key = f"{prefix}_{secrets.token_urlsafe(_SECRET_BYTES)}"
    values = {
        "name": name,
        "prefix": prefix,
        "digest": _digest(key),
        "scopes": sorted(Scope(each) for each in scopes),
        "tenant": tenant,
        "expires_in": None if expires_in is None else seconds(expires_in),
    }
    row = (await connection.execute(_CREATE, values)).mappings().one()
    return _key(row), key


async def find(connection: AsyncSession | AsyncConnection, key: str) -> ApiKey | None:
    """The key that this is, or None if it is none, has been revoked or has expired."""
    prefix = key[: len(MARK) + 2 * _PREFIX_BYTES]
    row = (await connection.execute(_FIND, {"prefix": prefix})).mappings().first() if prefix.isascii() else None
    # As long for a wrong one as for a right one, and for one that nobody knows.
    if not hmac.compare_digest(row["digest"] if row is not None else bytes(32), _digest(key)) or row is None:
        return None
    return _key(row)


async def revoke(connection: AsyncSession | AsyncConnection, key: str) -> ApiKey:
    """Have a key open nothing any more, within five seconds of the commit.

    :param key: its id or its prefix.
    :raises KeyNotFound: if there is no such key.
    """
    row = (await connection.execute(_REVOKE, {"key": key})).mappings().first()
    if row is None:
        raise KeyNotFound(key)
    return _key(row)


async def all_of_them(connection: AsyncSession | AsyncConnection) -> Sequence[ApiKey]:
    """All keys, the oldest first."""
    return [_key(row) for row in (await connection.execute(_ALL)).mappings()]


def opened_by(scopes: Collection[Scope]) -> frozenset[Scope]:
    """Everything that these scopes open."""
    return frozenset().union(*(INCLUDED[scope] for scope in scopes))


def _digest(key: str) -> bytes:
    # A key has 256 random bits: nobody can try them all, so that a slow digest would protect nothing.
    return hashlib.sha256(key.encode(errors="replace")).digest()


def _key(row: Mapping[Any, Any]) -> ApiKey:
    values = {name: row[name] for name in ApiKey.__dataclass_fields__}
    return ApiKey(**values | {"scopes": frozenset(map(Scope, values["scopes"]))})
