"""What all commands share: the database, what is printed, and how they end."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool

from outbox import connection
from outbox.errors import OutboxError

EXIT_FORCED = 75
"""Handlers were still running when the worker left; their jobs have been handed back (EX_TEMPFAIL)."""

EXIT_CONFIG = 78
"""Something must be mended by a person before a start can succeed (EX_CONFIG)."""

DatabaseUrl = Annotated[
    str,
    typer.Option(
        "--database-url", envvar=["OUTBOX_DATABASE_URL", "DATABASE_URL"], help="postgresql://…", show_default=False
    ),
]

AsJson = Annotated[bool, typer.Option("--json", help="print JSON, for programs")]

T = TypeVar("T")

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def ask(database_url: str, question: Callable[[AsyncSession], Awaitable[T]]) -> T:
    """Do something in one transaction and commit it.

    Whatever the library refuses ends the command with status 1, and a database that cannot be reached with 78.
    """

    async def run() -> T:
        url = "postgresql+asyncpg" + connection.dsn(database_url).removeprefix("postgresql")
        engine = create_async_engine(url, poolclass=NullPool, connect_args={"statement_cache_size": 0, "timeout": 10})
        try:
            async with AsyncSession(engine) as session, session.begin():
                return await question(session)
        finally:
            await engine.dispose()

    try:
        return asyncio.run(run())
    except OutboxError as exc:
        fail(str(exc), 1)
    except ValueError as exc:
        fail(str(exc), 2)
    except SQLAlchemyError as exc:
        reason = str(getattr(exc, "orig", None) or exc).splitlines()[0]
        fail(f"the database cannot be asked: {reason}; check --database-url, and migrate first")
    except (OSError, TimeoutError) as exc:
        fail(f"the database cannot be reached: {exc}; check --database-url")


def fail(message: str, status: int = EXIT_CONFIG) -> NoReturn:
    """End the command with a message."""
    typer.secho(f"outbox: {escaped(message)}", err=True, fg=typer.colors.RED)
    raise typer.Exit(status)


def show(value: Any) -> None:
    """Print JSON."""
    typer.echo(escaped(json.dumps(value, default=_plain, ensure_ascii=False, indent=2)))


def escaped(text: str) -> str:
    """Lines that do nothing to a terminal but stand there: what is not printable is written as JSON writes it."""
    return "".join(each if each.isprintable() or each == "\n" else json.dumps(each)[1:-1] for each in text)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str) -> None:
    """Print rows for people.

    :param empty: what to say if there are none.
    """
    found = [[_cell(each) for each in row] for row in rows]
    if not found:
        out.print(empty)
        return
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for n, column in enumerate(columns):
        numbers = all(row[n].replace(",", "").replace(".", "").isdigit() or row[n] == "–" for row in found)
        shown.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for row in found:
        shown.add_row(*map(Text, row))  # what stands in rows is no markup
    out.print(shown)


def ago(moment: datetime | None) -> str:
    """How long ago, or in how long, by this host's clock."""
    if moment is None:
        return "–"
    seconds = (datetime.now(UTC) - moment).total_seconds()
    return f"in {span(-seconds)}" if seconds < 0 else f"{span(seconds)} ago"


def span(seconds: float) -> str:
    """A time as people say it."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        if seconds >= size:
            digits = 0 if seconds >= 10 * size or size == 1 else 1
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds * 1000:.0f} ms"


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    text = str(value)
    return text if text.isprintable() else ascii(text)[1:-1]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, frozenset | set):
        return sorted(value)
    return value.isoformat() if isinstance(value, datetime) else str(value)
