"""Imports of customers from CSV files. A run that was broken off is resumed where it was: see ``ctx.keep``.

Several batches are written at once, in any order, and those that were under way when a worker died are written again.
What a customer looks like in the end does not depend on that: a row gives way to a later line of the same file and to
any line of a later file, and to nothing else.
"""

import asyncio
import csv
import os
from collections import deque
from collections.abc import Iterator
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

from pydantic import AfterValidator, BaseModel, EmailStr, StringConstraints, ValidationError
from sqlalchemy import select, tuple_
from sqlalchemy.dialects.postgresql import insert

from api.database import sessions
from api.handlers.registry import SettingsDep, outbox
from api.models import Customer, CustomerImport
from api.settings import Settings
from outbox import INJECTED, Cancel, JobContext, Retry

if TYPE_CHECKING:
    import _csv

BATCH = 500
WRITERS = 4
"""Batches that are written at once, each in a transaction of its own: the import's share of the connection pool."""

MAX_ERRORS = 100
COLUMNS = ("email", "name", "country")


class ImportRejected(Exception):
    """The file is no CSV file of customers; trying again changes nothing."""


class RowError(BaseModel):
    """Why one row was not imported. Lines count from 1, the header's."""

    line: int
    field: str | None
    reason: str


class ImportSummary(BaseModel):
    """What became of the rows; the errors are the first hundred."""

    total: int = 0
    succeeded: int = 0
    failed: int = 0
    errors: list[RowError] = []


class CustomerRow(BaseModel):
    """One row that can be stored."""

    email: Annotated[EmailStr, AfterValidator(str.lower)]
    name: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]
    country: Annotated[str, StringConstraints(pattern=r"^[A-Z]{2}$")] | None = None


def path_of(settings: Settings, import_id: UUID) -> Path:
    """Where an uploaded file is."""
    return settings.files_dir / "imports" / f"{import_id}.csv"


@outbox.task(queue="imports", retry=Retry(max_attempts=5, base=5.0, give_up_on=(ImportRejected,)), timeout=1800)
async def import_customers(
    import_id: UUID, *, settings: SettingsDep = INJECTED, ctx: JobContext = INJECTED
) -> ImportSummary:
    """Store every good row of the file, and tell what is wrong with the others."""
    async with sessions() as session:
        number = await session.scalar(select(CustomerImport.number).where(CustomerImport.id == import_id))
    if number is None:
        raise Cancel("the import is not wanted any more")
    path, summary = path_of(settings, import_id), ImportSummary.model_validate(ctx.checkpoint or {})
    with await asyncio.to_thread(path.open, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        # What is no UTF-8 becomes lone surrogates, so that it spoils its own row and no other.
        reader = csv.reader(TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline=""))
        rows = _rows(reader, await asyncio.to_thread(_columns, reader))
        await asyncio.to_thread(_skip, rows, summary.total)
        while batches := await asyncio.to_thread(_read, rows):
            async with asyncio.TaskGroup() as group:
                for batch in batches:
                    group.create_task(_store(number, batch))
            for batch in batches:
                _count(summary, batch)
            ctx.keep(summary.model_dump(mode="json"))
            ctx.progress(file.tell(), size, f"{summary.total:,} rows, {summary.failed:,} of them wrong")
    ctx.progress(size, size, f"{summary.total:,} rows, {summary.failed:,} of them wrong")
    return summary


Parsed = tuple[int, CustomerRow] | RowError


def _columns(reader: "_csv.Reader") -> list[str]:
    """The header's names.

    :raises ImportRejected: if they are not those of a file of customers.
    """
    try:
        header = [name.strip().lower() for name in next(reader, [])]
    except csv.Error as exc:
        raise ImportRejected(f"the file is no CSV: {exc}") from exc
    if len(set(header)) != len(header) or not {"email", "name"} <= set(header):
        raise ImportRejected("the first line must name the columns, once each: email, name; in UTF-8, with commas")
    return header


def _rows(reader: "_csv.Reader", header: list[str]) -> Iterator[Parsed]:
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as exc:
            yield RowError(line=line, field=None, reason=str(exc))
            continue
        if cells:  # an empty line is no row
            yield _row(line, header, cells)


def _skip(rows: Iterator[Parsed], count: int) -> None:
    """Pass over the rows that an earlier run has stored."""
    deque(islice(rows, count), maxlen=0)


def _read(rows: Iterator[Parsed]) -> list[list[Parsed]]:
    """The next batches, as many as are written at once."""
    batches = (list(islice(rows, BATCH)) for _ in range(WRITERS))
    return [batch for batch in batches if batch]


def _row(line: int, header: list[str], cells: list[str]) -> Parsed:
    if len(cells) != len(header):
        return RowError(line=line, field=None, reason=f"has {len(cells)} columns, the header has {len(header)}")
    values = {name: cell for name, cell in zip(header, cells, strict=True) if name in COLUMNS}
    for name, cell in values.items():
        if "\0" in cell:
            return RowError(line=line, field=name, reason="contains a NUL character")
        if any("\ud800" <= character <= "\udfff" for character in cell):
            return RowError(line=line, field=name, reason="is not UTF-8")
    try:
        return line, CustomerRow.model_validate({name: cell.strip() or None for name, cell in values.items()})
    except ValidationError as exc:
        error = exc.errors(include_url=False, include_input=False)[0]
        missing = values[str(error["loc"][0])].strip() == ""
        return RowError(line=line, field=str(error["loc"][0]), reason="is empty" if missing else error["msg"])


def _count(summary: ImportSummary, batch: list[Parsed]) -> None:
    errors = [row for row in batch if isinstance(row, RowError)]
    summary.total += len(batch)
    summary.failed += len(errors)
    summary.succeeded += len(batch) - len(errors)
    summary.errors += errors[: MAX_ERRORS - len(summary.errors)]


async def _store(number: int, batch: list[Parsed]) -> None:
    latest = {row[1].email: row for row in batch if not isinstance(row, RowError)}
    if not latest:
        return
    # Sorted, so that two batches with the same customers lock them in one order and never wait in a circle.
    rows = [{**row.model_dump(), "line": line, "import_number": number} for _, (line, row) in sorted(latest.items())]
    statement = insert(Customer).values(rows)
    new = statement.excluded
    statement = statement.on_conflict_do_update(
        index_elements=[Customer.email],
        set_={name: new[name] for name in ("name", "country", "import_number", "line")},
        where=tuple_(Customer.import_number, Customer.line) < tuple_(new.import_number, new.line),
    )
    async with sessions.begin() as session:
        await session.execute(statement)
