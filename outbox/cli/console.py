"""What all commands share: the database, what is printed, and how they end."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated, Any, NoReturn, TypeVar

import asyncpg
import typer
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.pool import NullPool

from outbox import address, connection, words
from outbox.errors import DeclarationError, OutboxError

EXIT_REFUSED = 1
"""Refused, nothing was changed, or problems were found."""

EXIT_USAGE = 2
"""A wrong option."""

EXIT_FORCED = 75
"""Handlers were still running when the worker left; their jobs have been handed back (EX_TEMPFAIL)."""

EXIT_CONFIG = 78
"""Something must be mended by a person before a start can succeed (EX_CONFIG)."""

EXIT_INTERRUPTED = 130
"""Ctrl-C, in the middle of something; as shells have it."""

DatabaseUrl = Annotated[
    str,
    typer.Option(
        "--database-url",
        envvar=["OUTBOX_DATABASE_URL", "DATABASE_URL"],
        help="postgresql://user:password@host/name",
        show_default=False,
    ),
]

AsJson = Annotated[bool, typer.Option("--json", help="print JSON, for programs")]

T = TypeVar("T")

WIDE = 1000
"""Columns of what is no terminal: nothing is folded there, so that a line can be searched and cut."""

NARROW = 24
"""Columns that the last column needs at least; where there are fewer, a row becomes a block of lines."""

MIDDLE = 40
"""Columns that are left of a cell in the middle of a table that would be too wide; ``--json`` has it all."""


def _console(*, stderr: bool = False) -> Console:
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal and not os.environ.get("COLUMNS"):
        console.width = WIDE
    return console


out = _console()
err = _console(stderr=True)


class Unanswered(Exception):
    """The database could not be asked. The message says why and what to do, in one line."""


async def answer(database_url: str, question: Callable[[AsyncSession], Awaitable[T]]) -> T:
    """What comes of doing something in one transaction, which is committed.

    :raises Unanswered: if the database cannot be reached, or is not what this release needs.
    :raises OutboxError: whatever the library refuses.
    """
    try:
        arguments = {"timeout": 10, "statement_cache_size": 0}  # there may be a pooler
        engine = address.engine(database_url, poolclass=NullPool, connect_args=arguments)
        try:
            async with AsyncSession(engine) as session, session.begin():
                return await question(session)
        finally:
            await engine.dispose()
    except (DeclarationError, SQLAlchemyError, *connection.FAILURES) as exc:
        raise Unanswered(trouble(exc)) from exc


def ask(database_url: str, question: Callable[[AsyncSession], Awaitable[T]]) -> T:
    """Do something in one transaction and commit it.

    Whatever the library refuses ends the command with status 1, and a database that cannot be asked with 78.
    """
    try:
        return asyncio.run(answer(database_url, question))
    except Unanswered as exc:
        fail(str(exc))
    except OutboxError as exc:
        fail(str(exc), EXIT_REFUSED)
    except ValueError as exc:
        fail(str(exc), EXIT_USAGE)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Put Ctrl-C off until the end of the block. Said twice, it interrupts at once.

    :raises KeyboardInterrupt: at the end, if it was said meanwhile.
    """
    said = False

    def note(_number: int, _frame: object) -> None:
        nonlocal said
        if said:
            raise KeyboardInterrupt
        said = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if said:
        raise KeyboardInterrupt


def trouble(exc: BaseException) -> str:
    """What is wrong with the database, and what to do about it, in one line."""
    if isinstance(exc, DeclarationError):
        return str(exc)
    cause = getattr(exc, "orig", None) or exc
    reason = str(cause).partition("\n")[0] or type(cause).__name__
    state = getattr(cause, "sqlstate", None)
    if state in _NO_SCHEMA:
        return f"the database lacks the outbox schema that this release needs ({reason}); run: outbox migrate"
    if isinstance(exc, SQLAlchemyError | asyncpg.PostgresError):
        return f"the database cannot be asked: {reason}; check --database-url"
    return f"the database cannot be reached: {reason}; check --database-url"


_NO_SCHEMA = ("3F000", "42P01", "42703", "42883")
"""No such schema, table, column, function."""


def fail(message: str, status: int = EXIT_CONFIG) -> NoReturn:
    """End the command with a message."""
    say(f"outbox: {message}", style="red", to=err)
    raise typer.Exit(status)


def clean(text: str, *, keep: str = "\n\t") -> str:
    r"""The text with whatever would steer a terminal written out, as in \x1b."""
    if text.isprintable():
        return text
    shown = (
        each if each.isprintable() or each in keep else each.encode("unicode_escape").decode("ascii") for each in text
    )
    return "".join(shown)


def say(text: str, *, style: str = "", to: Console = out) -> None:
    """Print text for people, to the letter: what stands in it is no markup, and steers no terminal."""
    to.print(Text(clean(text), style), soft_wrap=True)


def show(value: Any, *, indent: int | None = 2) -> None:
    """Print JSON."""
    is_utf = (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")
    typer.echo(_still(json.dumps(value, default=_plain, ensure_ascii=not is_utf, indent=indent)))


def _still(text: str) -> str:
    """JSON that does nothing to a terminal: what is not printable is written as JSON writes it."""
    return "".join(each if each.isprintable() or each == "\n" else json.dumps(each)[1:-1] for each in text)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str) -> None:
    """Print rows for people; as blocks of lines where the terminal is too narrow for a table.

    :param empty: what to say if there are none.
    """
    found = [[_cell(each) for each in row] for row in rows]
    if not found:
        say(empty)
        return
    if _width(columns, found) > out.width:
        short = [[row[0], *(_cut(each) for each in row[1:-1]), row[-1]] for row in found]
        if _width(columns, short) > out.width:
            _blocks(columns, found)
            return
        found = short
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for n, column in enumerate(columns):
        numbers = all(row[n].replace(",", "").replace(".", "").isdigit() or row[n] == "–" for row in found)
        is_last = n == len(columns) - 1
        shown.add_column(column, justify="right" if numbers else "left", overflow="fold", no_wrap=not is_last)
    for row in found:
        shown.add_row(*map(Text, row))  # what stands in rows is no markup
    out.print(shown)


def _width(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """Columns of the terminal that a table needs, whose last column may be folded."""
    *widths, last = (max(map(cell_len, cells)) for cells in zip(columns, *rows, strict=True))
    return sum(width + 2 for width in widths) + min(last, NARROW)


def _cut(cell: str) -> str:
    text = Text(cell)
    text.truncate(MIDDLE, overflow="ellipsis")
    return text.plain


def _blocks(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    for first, *others in rows:
        say(first, style="bold")
        line = ""
        for column, value in zip(columns[1:], others, strict=True):
            if not value or value == "–":
                continue
            pair = f"{column} {value}".strip()
            if line and cell_len(f"  {line}  {pair}") > out.width:
                say(f"  {line}")
                line = ""
            line += f"  {pair}" if line else pair
        if line:
            say(f"  {line}")


def ago(moment: datetime | None) -> str:
    """How long ago, or in how long, by this host's clock."""
    return "–" if moment is None else words.distance(moment, datetime.now(UTC))


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return clean(str(value), keep="")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, frozenset | set):
        return sorted(value)
    return value.isoformat() if isinstance(value, datetime) else str(value)
