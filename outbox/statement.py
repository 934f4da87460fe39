"""Run a statement in the caller's transaction at the least cost.

Handed over as ``text()``, a statement is prepared by SQLAlchemy anew each time it is run, which costs as much as the
server needs to run it. Written once for the driver, it goes there as it is; events and logs see it all the same.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, CursorResult, Dialect, TextClause


def execute(connection: Connection, statement: TextClause, values: Mapping[str, Any]) -> CursorResult[Any]:
    """Run it with these values.

    :param values: of all its parameters, of types that the driver takes as they are.
    """
    written, order = _written_for(connection.dialect, statement)
    return connection.exec_driver_sql(written, tuple(values[name] for name in order) if order else dict(values))


@lru_cache(maxsize=128)
def _written_for(dialect: Dialect, statement: TextClause) -> tuple[str, tuple[str, ...]]:
    compiled = statement.compile(dialect=dialect)
    return compiled.string, tuple(compiled.positiontup or ())
