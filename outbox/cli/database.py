"""``outbox migrate``, ``check`` and ``doctor``: is the database ready, would it run, and what is wrong?"""

import asyncio
from collections.abc import Coroutine
from dataclasses import asdict
from typing import Any, TypeVar

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text
from sqlalchemy.ext.asyncio import AsyncSession

from outbox import check as checking
from outbox import connection
from outbox import doctor as doctors
from outbox import migrate as migration
from outbox.cli.console import (
    EXIT_REFUSED,
    AsJson,
    DatabaseUrl,
    ask,
    clean,
    err,
    fail,
    out,
    say,
    show,
    table,
    trouble,
)
from outbox.cli.target import Target, load
from outbox.errors import OutboxError

PROGRESS = 10_000
"""Jobs after which a long check says that it is still at it, where a bar cannot be seen."""

MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "problem": ("✗", "red")}

T = TypeVar("T")


def migrate(database_url: DatabaseUrl, as_json: AsJson = False) -> None:
    """Bring the database to this release's schema. For hosts without Alembic."""
    before, after = _done(migration.migrate(database_url))
    if as_json:
        show({"before": before, "after": after})
    else:
        say(f"outbox schema: version {after}" + ("" if before == after else f" (was {before})"))


def check(database_url: DatabaseUrl, target: Target = None, as_json: AsJson = False) -> None:
    """Ask whether this code would run what waits. For before a deploy: reads only, and calls no handler.

    Exit status: 0 it would run all of them; 1 some would fail, or would wait for other code; 78 misconfigured.
    """
    outbox = load(target)
    columns = (SpinnerColumn(), TextColumn("{task.completed:,.0f} jobs checked"), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        bar = progress.add_task("", total=None)

        def at_it(checked: int) -> None:
            progress.update(bar, completed=checked)
            if progress.disable and checked % PROGRESS == 0:
                say(f"{checked:,} jobs checked …", to=err)

        report = _done(checking.check(outbox, database_url, progress=at_it))
    if as_json:
        show({"checked": report.checked, "problems": [asdict(each) for each in report.problems]})
    else:
        _report(report)
    raise typer.Exit(EXIT_REFUSED if report.problems else 0)


def _report(report: checking.Report) -> None:
    if problems := report.problems:
        rows = (
            (each.task, each.count, "fail" if each.fails else "wait", each.reason, " ".join(map(str, each.examples)))
            for each in problems
        )
        table(("task", "jobs", "would", "because", "as for"), rows, empty="")
    bad = sum(each.count for each in problems)
    say(f"{report.checked:,} jobs checked, {bad:,} of them would not run")


def _done(doing: Coroutine[Any, Any, T]) -> T:
    try:
        return asyncio.run(doing)
    except OutboxError as exc:
        fail(str(exc))
    except connection.FAILURES as exc:
        fail(trouble(exc))


def doctor(database_url: DatabaseUrl, as_json: AsJson = False) -> None:
    """Say what is wrong, and what to do about it. Looks at the database and the workers, and reads only.

    Exit status: 0 nothing is wrong, or only worth a word; 1 there are problems; 78 the database cannot be asked.
    """
    found = ask(database_url, _diagnose)
    if as_json:
        show({"level": found.level} | asdict(found))
    else:
        for each in found.findings:
            mark, style = MARKS[each.level]
            said = clean(each.text, keep="")
            out.print(Text.assemble((mark, style), " ", (each.check, "bold"), "  ", said), soft_wrap=True)
            if each.fix:
                say(f"  → {each.fix}", style="dim")
        say("")
        table(("setting", "value", "set by"), ((s.name, s.value, s.source) for s in found.settings), empty="")
    raise typer.Exit(EXIT_REFUSED if found.level == "problem" else 0)


async def _diagnose(session: AsyncSession) -> doctors.Diagnosis:
    return await doctors.diagnose(await session.connection())
