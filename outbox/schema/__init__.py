"""Versioned DDL of the ``outbox`` schema, applied by the host's own migrations.

A host with Alembic calls ``upgrade(op.execute, from_=0, to=1)`` in a revision of its own history; a host without it
runs ``outbox migrate``. Nothing here knows Alembic, and nothing here commits.
"""

from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Final

from outbox.errors import SchemaMismatch
from outbox.schema import v1, v2, v3, v4

VERSIONS: Final = MappingProxyType({1: v1, 2: v2, 3: v3, 4: v4})
LATEST: Final = max(VERSIONS)
"""The version that this release works with."""

LOCK_KEY: Final = 0x6F7574626F78
"""Key of the transaction-level advisory lock under which migrators work one at a time ("outbox" in ASCII)."""

Execute = Callable[[str], object]


def upgrade(execute: Execute, *, from_: int, to: int) -> None:
    """Run the statements that lead from version ``from_`` (0: nothing there) up to ``to``, in the caller's transaction.

    :param execute: takes one SQL statement; Alembic's ``op.execute``, or ``lambda sql: connection.execute(text(sql))``.
    :raises SchemaMismatch: if there is no such version, or ``to`` is not above ``from_``.
    """
    _check(from_, to)
    for version in range(from_ + 1, to + 1):
        _run(execute, VERSIONS[version].UP)


def downgrade(execute: Execute, *, from_: int, to: int) -> None:
    """Run the statements that lead from version ``from_`` down to ``to`` (0: drop everything, jobs included).

    :raises SchemaMismatch: if there is no such version, or ``to`` is not below ``from_``.
    """
    _check(to, from_)
    for version in range(from_, to, -1):
        _run(execute, VERSIONS[version].DOWN)


def _check(low: int, high: int) -> None:
    if not 0 <= low < high <= LATEST:
        raise SchemaMismatch(f"no way from version {low} to {high}: this release knows versions 0 to {LATEST}")


def _run(execute: Execute, statements: Sequence[str]) -> None:
    for statement in statements:
        execute(statement)
