"""The database's address, read alike by whoever connects: the worker, the command line, and an application's engine.

It says all that libpq's address may say, and that asyncpg knows: TLS (``sslmode``, ``sslrootcert`` ...), settings of
the session, several hosts. SQLAlchemy alone would hand every parameter to ``asyncpg.connect``, which has most of them
by other names or not at all.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from outbox.errors import DeclarationError

SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
"""As libpq has them. Only the last one proves that the server is the one that was asked for."""

# What people write into an address for SQLAlchemy; asyncpg would send it to the server, which knows no such setting.
_FOR_SQLALCHEMY = ("prepared_statement_cache_size", "prepared_statement_name_func")

_FILES = ("sslrootcert", "sslcert", "sslkey", "sslcrl")


def dsn(url: str) -> str:
    """The address as asyncpg wants it, from a libpq or SQLAlchemy URL of any driver.

    :raises DeclarationError: if it is none, or asks for TLS in a way that cannot be had; the message does not show it,
        for there may be a password in it.
    """
    plain = _read(url)
    if "ssl" in plain.query:  # as SQLAlchemy's asyncpg has it
        plain = plain.update_query_dict({"sslmode": plain.query["ssl"]})
    _check_tls(plain)
    return plain.difference_update_query(["ssl", *_FOR_SQLALCHEMY]).render_as_string(hide_password=False)


def engine(url: str, *, connect_args: Mapping[str, Any] | None = None, **options: Any) -> AsyncEngine:
    """SQLAlchemy's ``create_async_engine`` for an address that says more than SQLAlchemy understands.

    :param url: a libpq or SQLAlchemy URL; whatever driver it names, asyncpg is the one.
    :param connect_args: for ``asyncpg.connect``.
    :param options: for ``create_async_engine``.
    :raises DeclarationError: as ``dsn``.
    """
    known = _read(url)
    known = known.set(
        drivername="postgresql+asyncpg",
        query={name: known.query[name] for name in _FOR_SQLALCHEMY if name in known.query},
    )
    return create_async_engine(known, connect_args={**(connect_args or {}), "dsn": dsn(url)}, **options)


def _read(url: str) -> URL:
    try:
        plain = make_url("postgresql" + url[url.index("://") :] if "://" in url else url)
        for host in (plain.host or "").split(","):
            host.encode("idna")  # as whoever connects would, but with another error
        if not 0 < (plain.port or 1) < 65_536:
            raise ValueError(plain.port)
    except (ArgumentError, ValueError):
        raise DeclarationError(
            "the database URL cannot be read: write postgresql://user:password@host:5432/name, and percent-encode what "
            "is special in the password"
        ) from None
    return plain


def _check_tls(plain: URL) -> None:
    """Refuse at once what would fail at every connection, and would look like a database that is away."""
    mode = plain.query.get("sslmode")
    if mode is not None and mode not in SSL_MODES:
        raise DeclarationError(f"the database URL's sslmode must be one of {', '.join(SSL_MODES)}")
    for name in _FILES:
        path = plain.query.get(name)
        if path and not Path(str(path)).is_file():
            raise DeclarationError(f"the database URL's {name} is no file: {path}")
