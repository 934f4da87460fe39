"""What the charts show, as the page hands it to the browser."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from outbox.fastapi.statistics import Statistics
from outbox.statistic import Backlog

QUEUES = 8
"""Queues at most that a chart tells apart; the others are added up."""

Unit = Literal["count", "seconds"]

_OUTCOMES = (("succeeded", "good"), ("retried", "warn"), ("snoozed", "calm"), ("cancelled", "dull"), ("failed", "bad"))


def throughput(statistics: Statistics) -> dict[str, Any]:
    """Attempts by how they ended, stacked."""
    series = [
        _series(outcome, tone, [getattr(point, outcome) for point in statistics.points]) for outcome, tone in _OUTCOMES
    ]
    return _chart(_times(statistics), series, "count", statistics.step, stacked=True)


def waits(statistics: Statistics) -> dict[str, Any]:
    """How long jobs waited from being due to being claimed."""
    return _times_of(statistics, (("p50", "one", "wait_p50"), ("p95", "two", "wait_p95")))


def runs(statistics: Statistics) -> dict[str, Any]:
    """How long attempts ran."""
    return _times_of(statistics, (("p50", "one", "run_p50"), ("p95", "two", "run_p95"), ("p99", "three", "run_p99")))


def backlog(statistics: Statistics, seen: Sequence[Backlog]) -> dict[str, Any]:
    """How many jobs were due and waited, by queue, stacked."""
    starts = [point.starts_at for point in statistics.points]
    by_queue: dict[str, dict[datetime, int]] = {}
    for each in seen:
        by_queue.setdefault(each.queue, {})[each.at] = each.ready
    largest = sorted(by_queue, key=lambda queue: -max(by_queue[queue].values()))
    series = [
        _series(queue, f"q{n}", [by_queue[queue].get(start, 0) for start in starts])
        for n, queue in enumerate(largest[:QUEUES])
    ]
    if len(largest) > QUEUES:
        others = [sum(by_queue[queue].get(start, 0) for queue in largest[QUEUES:]) for start in starts]
        series.append(_series("others", "dull", others))
    return _chart(_times(statistics), series, "count", statistics.step, stacked=True)


def spark(counts: Sequence[int], width: int = 120, height: int = 24) -> str:
    """A small line, as the path that SVG draws; counts from left to right."""
    highest = max(counts, default=0) or 1
    step = width / max(1, len(counts) - 1)
    points = (f"{n * step:.1f},{height - 1 - (height - 2) * count / highest:.1f}" for n, count in enumerate(counts))
    return "M" + " L".join(points)


def _times_of(statistics: Statistics, lines: Sequence[tuple[str, str, str]]) -> dict[str, Any]:
    series = [
        _series(label, tone, [getattr(point, field) for point in statistics.points]) for label, tone, field in lines
    ]
    return _chart(_times(statistics), series, "seconds", statistics.step, stacked=False)


def _times(statistics: Statistics) -> list[int]:
    return [_seconds(point.starts_at) for point in statistics.points]


def _series(label: str, tone: str, values: Sequence[float | None]) -> dict[str, Any]:
    return {"label": label, "tone": tone, "values": list(values)}


def _chart(
    times: Sequence[int], series: Sequence[Mapping[str, Any]], unit: Unit, step: int, *, stacked: bool
) -> dict[str, Any]:
    return {"times": list(times), "series": list(series), "unit": unit, "step": step, "stacked": stacked}


def _seconds(moment: datetime) -> int:
    return int(moment.timestamp())
