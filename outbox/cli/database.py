"""``outbox migrate``, ``check`` and ``doctor``: is the database ready, would it run, and what is wrong?"""

import asyncio
from dataclasses import asdict

import typer
from sqlalchemy.ext.asyncio import AsyncSession

from outbox import check as checking
from outbox import connection
from outbox import doctor as doctors
from outbox import migrate as migration
from outbox.cli.console import AsJson, DatabaseUrl, ask, fail, out, show, table
from outbox.cli.target import Target, load
from outbox.errors import OutboxError

PROGRESS = 10_000
"""Jobs after which a long check says that it is still at it."""

MARKS = {"ok": "[green]✓[/]", "warning": "[yellow]![/]", "problem": "[red]✗[/]"}


def migrate(database_url: DatabaseUrl) -> None:
    """Bring the database's outbox schema to this release's version, for hosts without Alembic."""
    try:
        before, after = asyncio.run(migration.migrate(database_url))
    except OutboxError as exc:
        fail(str(exc))
    except (OSError, TimeoutError) as exc:
        fail(f"the database cannot be reached: {exc}; check --database-url")
    typer.echo(f"outbox schema: version {after}" + ("" if before == after else f" (was {before})"))


def check(
    database_url: DatabaseUrl,
    target: Target = None,
) -> None:
    """Ask before a deploy whether this code would run the jobs that wait. Reads only, and calls no handler.

    Exit status: 0 it would run all of them; 1 some would fail, or would wait for other code; 78 misconfigured.
    """

    def progress(checked: int) -> None:
        if checked % PROGRESS == 0:
            typer.echo(f"{checked:,} jobs checked …", err=True)

    try:
        report = asyncio.run(checking.check(load(target), database_url, progress=progress))
    except OutboxError as exc:
        fail(str(exc))
    except connection.FAILURES as exc:
        fail(f"the database cannot be asked: {exc}; check --database-url, and migrate first")
    for line in checking.table(report):
        typer.echo(line)
    raise typer.Exit(1 if report.problems else 0)


def doctor(database_url: DatabaseUrl, as_json: AsJson = False) -> None:
    """Say what is wrong with the database or the workers, and what to do about it. Reads only.

    Exit status: 0 nothing is wrong, or only worth a word; 1 there are problems; 78 the database cannot be asked.
    """
    found = ask(database_url, _diagnose)
    if as_json:
        show({"level": found.level} | asdict(found))
    else:
        for each in found.findings:
            out.print(f"{MARKS[each.level]} [bold]{each.check}[/]  ", end="")
            out.print(each.text, markup=False)
            if each.fix:
                out.print(f"  → {each.fix}", markup=False, style="dim")
        out.print()
        table(("setting", "value", "set by"), ((s.name, s.value, s.source) for s in found.settings), empty="")
    raise typer.Exit(1 if found.level == "problem" else 0)


async def _diagnose(session: AsyncSession) -> doctors.Diagnosis:
    return await doctors.diagnose(await session.connection())
