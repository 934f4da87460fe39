"""``outbox stats``: how it goes, once or as a view that stays."""

import asyncio
import contextlib
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer
from rich.console import Group, JustifyMethod
from rich.live import Live
from rich.table import Table
from rich.text import Text
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from outbox import presence, queue, statistic
from outbox.cli.console import (
    AsJson,
    DatabaseUrl,
    Unanswered,
    ago,
    answer,
    ask,
    clean,
    err,
    out,
    say,
    show,
)
from outbox.queue import QueueState
from outbox.statistic import Point
from outbox.words import span

BARS = " ▁▂▃▄▅▆▇█"
MINUTES = 60

PATIENCE = 10.0
"""Seconds that a look may take."""


def stats(
    database_url: DatabaseUrl,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="stay, and show what changes; Ctrl-C ends it")] = False,
    every: Annotated[float, typer.Option("--every", min=0.5, help="seconds between two looks")] = 2.0,
    as_json: AsJson = False,
) -> None:
    """Show throughput and waits of the last hour. For each queue, what waits in it now."""
    first = ask(database_url, _look)
    if not watch:
        _print(first, as_json=as_json)
        return
    # A SIGTERM, too, leaves the terminal as it was.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        if as_json or not out.is_terminal:
            _go_on(database_url, every, first, as_json=as_json)
        else:
            _stay(database_url, every, first)


def _print(seen: "_Seen", *, as_json: bool, indent: int | None = 2) -> None:
    if as_json:
        show(_as_json(seen), indent=indent)
    else:
        out.print(_view(seen))


def _go_on(database_url: str, every: float, seen: "_Seen", *, as_json: bool) -> None:
    """Print one look after the other, where there is no terminal."""
    _print(seen, as_json=as_json, indent=None)
    while True:
        time.sleep(every)
        found = _again(database_url)
        if isinstance(found, str):
            say(f"outbox: {found}", style="red", to=err)
        else:
            _print(found, as_json=as_json, indent=None)


def _stay(database_url: str, every: float, seen: "_Seen") -> None:
    """Keep one view up to date; a database that is gone is waited for."""
    trouble = ""
    with Live(console=out, auto_refresh=False, screen=True) as live:
        while True:
            head = Text(f"{time.strftime('%H:%M:%S')}, every {every:g} s; Ctrl-C ends it", style="dim")
            said = Text(clean(f"{trouble}; trying again") if trouble else "", style="bold red")
            live.update(Group(head, said, _view(seen, out.height - 2)), refresh=True)
            time.sleep(every)
            found = _again(database_url)
            seen, trouble = (seen, found) if isinstance(found, str) else (found, "")


def _again(database_url: str) -> "_Seen | str":
    """One more look, or what has kept it from being taken."""

    async def look() -> _Seen:
        async with asyncio.timeout(PATIENCE):
            return await answer(database_url, _look)

    try:
        return asyncio.run(look())
    except Unanswered as exc:
        return str(exc)
    except TimeoutError:
        return f"the database has not answered within {PATIENCE:g} s"


@dataclass(frozen=True)
class _Seen:
    """What one look has found."""

    now: datetime
    points: Sequence[Point]
    queues: Sequence[QueueState]
    workers: Sequence[presence.WorkerRow]


async def _look(session: AsyncSession) -> _Seen:
    now: datetime = (await session.execute(select(func.clock_timestamp()))).scalar_one()
    points = await statistic.read(session, now - timedelta(minutes=MINUTES), now)
    return _Seen(now, points, await queue.states(session), await presence.workers(session))


def _view(seen: _Seen, height: int | None = None) -> Group:
    """What has been seen, in so many lines at most."""
    queues = seen.queues if height is None else seen.queues[: max(3, height // 3)]
    rows = None if height is None else max(3, height - len(queues) - 9)
    left = len(seen.queues) - len(queues)
    more = [Text(f"and {left:,} more queues", style="dim")] if left else []
    return Group(_sentence(seen), Text(), *_tasks(seen, rows), Text(), _queues(queues), *more)


def _sentence(seen: _Seen) -> Text:
    done, failed = _count(seen.points, "succeeded"), _count(seen.points, "failed")
    wait = statistic.quantile(statistic.add([point.waits for point in seen.points]), 0.95)
    up = sum(worker.alive for worker in seen.workers)
    parts = [f"{done:,} jobs succeeded in the last hour", f"{failed:,} failed"]
    if wait is not None:
        parts.append(f"95 of 100 waited less than {span(wait)}")
    parts.append(f"{up} workers are up" if up != 1 else "1 worker is up")
    return Text(", ".join(parts) + ".", style="bold red" if not up else "bold yellow" if failed else "bold green")


def _tasks(seen: _Seen, rows: int | None) -> list[Table | Text]:
    """A table of the tasks that ran, the busiest if there are more than ``rows``."""
    by_task: dict[str, list[Point]] = {}
    for point in seen.points:
        by_task.setdefault(point.task, []).append(point)
    busiest = sorted(by_task, key=lambda task: -sum(point.count for point in by_task[task]))
    columns = _columns()
    shown = _table("task", *columns)
    for task in sorted(busiest[:rows]):
        cells = _cells(seen.now, by_task[task])
        shown.add_row(_name(task, columns), *(cells[column] for column in columns))
    left = len(busiest) - len(busiest[:rows])
    return [shown, Text(f"and {left:,} more tasks", style="dim")] if left else [shown]


def _columns() -> tuple[str, ...]:
    """Those for which there is room."""
    if out.width >= 100:
        return ("last hour", "succeeded", "failed", "retried", "wait p95", "run p50", "run p99")
    return ("last hour", "succeeded", "failed", "run p99") if out.width >= 80 else ("last hour", "succeeded", "failed")


def _cells(now: datetime, points: Sequence[Point]) -> dict[str, Text | str]:
    waits = statistic.add([point.waits for point in points])
    runs = statistic.add([point.runs for point in points])
    return {
        "last hour": _sparkline(now, points),
        **{outcome: f"{_count(points, outcome):,}" for outcome in ("succeeded", "failed", "retried")},
        "wait p95": _seconds(statistic.quantile(waits, 0.95)),
        "run p50": _seconds(statistic.quantile(runs, 0.5)),
        "run p99": _seconds(statistic.quantile(runs, 0.99)),
    }


def _name(name: str, columns: Sequence[str]) -> Text:
    """A name in what the others leave of the line."""
    others = sum(max(len(column), 9) + 2 for column in columns if column != "last hour") + 2 + MINUTES // 3
    text = Text(clean(name, keep=""))
    text.truncate(max(12, min(60, out.width - others)), overflow="ellipsis")
    return text


def _queues(queues: Sequence[QueueState]) -> Table:
    columns = ("ready", "oldest", "scheduled", "running", "slots")
    shown = _table("queue", *columns)
    for each in queues:
        name = _name(each.name, columns)
        if each.paused_at:
            name.append(" paused", "yellow")
        shown.add_row(
            name, f"{each.ready:,}", ago(each.oldest), f"{each.scheduled:,}", f"{each.running:,}", f"{each.slots:,}"
        )
    return shown


def _table(*columns: str) -> Table:
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        justify: JustifyMethod = "left" if column in ("task", "queue", "last hour") else "right"
        shown.add_column(column, justify=justify, no_wrap=True)
    return shown


def _sparkline(now: datetime, points: Sequence[Point]) -> Text:
    """Attempts by three minutes."""
    counts = [0] * (MINUTES // 3)
    for point in points:
        age = (now - point.starts_at.astimezone(UTC)).total_seconds() / 180
        counts[max(0, len(counts) - 1 - int(age))] += point.count
    highest = max(counts) or 1
    return Text("".join(BARS[-(-count * (len(BARS) - 1) // highest)] for count in counts), style="cyan")


def _count(points: Sequence[Point], outcome: str) -> int:
    return sum(point.count for point in points if point.outcome == outcome)


def _seconds(value: float | None) -> str:
    return "–" if value is None else span(value)


def _as_json(seen: _Seen) -> dict[str, Any]:
    return {
        "now": seen.now,
        "minutes": [
            {"starts_at": p.starts_at, "queue": p.queue, "task": p.task, "outcome": p.outcome, "count": p.count}
            for p in seen.points
        ],
        "queues": [asdict(each) for each in seen.queues],
        "workers": [asdict(each) for each in seen.workers],
    }
