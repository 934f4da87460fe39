"""``outbox stats``: how it goes, once or as a view that stays."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from outbox import presence, queue, statistic
from outbox.cli.console import AsJson, DatabaseUrl, ago, ask, out, show, span
from outbox.queue import QueueState
from outbox.statistic import Point

BARS = " ▁▂▃▄▅▆▇█"
MINUTES = 60


def stats(
    database_url: DatabaseUrl,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="stay, and show what changes; Ctrl-C ends it")] = False,
    every: Annotated[float, typer.Option("--every", min=0.5, help="seconds between two looks")] = 2.0,
    as_json: AsJson = False,
) -> None:
    """Show throughput, waits and queues of the last hour."""
    if as_json:
        show(_as_json(ask(database_url, _look)))
        return
    if not watch:
        out.print(_view(ask(database_url, _look)))
        return
    try:
        with Live(_view(ask(database_url, _look)), console=out, auto_refresh=False, screen=out.is_terminal) as live:
            while True:
                time.sleep(every)
                live.update(_view(ask(database_url, _look)), refresh=True)
    except KeyboardInterrupt:
        raise typer.Exit from None


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


def _view(seen: _Seen) -> Group:
    return Group(_sentence(seen), Text(), _tasks(seen), Text(), _queues(seen))


def _sentence(seen: _Seen) -> Text:
    done, failed = _count(seen.points, "succeeded"), _count(seen.points, "failed")
    wait = statistic.quantile(statistic.add([point.waits for point in seen.points]), 0.95)
    up = sum(worker.alive for worker in seen.workers)
    parts = [f"{done:,} jobs succeeded in the last hour", f"{failed:,} failed"]
    if wait is not None:
        parts.append(f"95 of 100 waited less than {span(wait)}")
    parts.append(f"{up} workers are up" if up != 1 else "1 worker is up")
    return Text(", ".join(parts) + ".", style="bold red" if not up else "bold yellow" if failed else "bold green")


def _tasks(seen: _Seen) -> Table:
    shown = _table("task", "last hour", "succeeded", "failed", "retried", "wait p95", "run p50", "run p99")
    for task in sorted({point.task for point in seen.points}):
        points = [point for point in seen.points if point.task == task]
        waits = statistic.add([point.waits for point in points])
        runs = statistic.add([point.runs for point in points])
        quantiles = ((waits, 0.95), (runs, 0.5), (runs, 0.99))
        shown.add_row(
            Text(task),
            _sparkline(seen.now, points),
            *(f"{_count(points, outcome):,}" for outcome in ("succeeded", "failed", "retried")),
            *(_seconds(statistic.quantile(counts, share)) for counts, share in quantiles),
        )
    return shown


def _queues(seen: _Seen) -> Table:
    shown = _table("queue", "", "ready", "oldest", "scheduled", "running", "slots")
    for each in seen.queues:
        shown.add_row(
            Text(each.name),
            Text("paused", style="yellow") if each.paused_at else "",
            f"{each.ready:,}",
            ago(each.oldest),
            f"{each.scheduled:,}",
            f"{each.running:,}",
            f"{each.slots:,}",
        )
    return shown


def _table(*columns: str) -> Table:
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        shown.add_column(column, justify="left" if column in ("task", "queue", "last hour", "") else "right")
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
