"""Statistics over HTTP: what was done in the last hour, day or week, from counts that workers keep."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from outbox import statistic
from outbox.fastapi.access import Principal, responses_of
from outbox.fastapi.api import Api
from outbox.fastapi.filters import Name
from outbox.fastapi.route import GuardedRoute
from outbox.statistic import Point, Span

Window = Literal["1h", "24h", "7d"]

WINDOWS: dict[Window, tuple[timedelta, Span, int]] = {
    "1h": (timedelta(hours=1), "minute", 60),
    "24h": (timedelta(hours=24), "ten minutes", 600),
    "7d": (timedelta(days=7), "hour", 3600),
}
"""How long each is, from what it is read, and how many seconds a point covers."""


class PointView(BaseModel):
    """What was done in a span of time. Times are in seconds, read from buckets: a fifth beside the truth at most."""

    starts_at: datetime
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    retried: int = 0
    snoozed: int = 0
    wait_p50: float | None = None
    wait_p95: float | None = None
    run_p50: float | None = None
    run_p95: float | None = None
    run_p99: float | None = None


class TaskStatistic(BaseModel):
    """A task over the whole window."""

    task: str
    queue: str
    succeeded: int = 0
    failed: int = 0
    retried: int = 0
    attempts: list[int] = Field(description="How many ended in each span, as in points.")
    wait_p95: float | None = None
    run_p50: float | None = None
    run_p95: float | None = None
    run_p99: float | None = None


class Statistics(BaseModel):
    """What was done in a window of time that ends now."""

    window: Window
    step: int = Field(description="Seconds that each point covers.")
    points: list[PointView] = Field(description="The oldest first; a span in which nothing ended is there too.")
    total: PointView = Field(description="All of them together.")
    tasks: list[TaskStatistic]


def area(api: Api) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["statistics"], route_class=GuardedRoute)
    Session = Annotated[AsyncSession, api.session]  # noqa: N806 - types, here and below
    Overseer = Annotated[Principal, api.overseer]  # noqa: N806

    @router.get("/statistics", operation_id="statistics_get", responses=responses_of(422))
    async def get_statistics(
        session: Session,
        who: Overseer,
        window: Annotated[Window, Query()] = "1h",
        queue: Annotated[Name | None, Query()] = None,
        task: Annotated[Name | None, Query()] = None,
    ) -> Statistics:
        """Throughput by outcome, and how long jobs waited and ran."""
        return await collect(session, window, queue=queue, task=task)

    return router


async def collect(
    session: AsyncSession, window: Window, *, queue: str | None = None, task: str | None = None
) -> Statistics:
    """Read and put together what one window shows."""
    length, span, step = WINDOWS[window]
    now: datetime = (await session.execute(select(func.clock_timestamp()))).scalar_one()
    first = _floor(now - length, step)
    read = await statistic.read(session, first, now, span=span, queue=queue, task=task)
    starts = [first + timedelta(seconds=step * n) for n in range(int((now - first).total_seconds() // step) + 1)]
    by_start: dict[datetime, list[Point]] = {start: [] for start in starts}
    by_task: dict[tuple[str, str], list[Point]] = {}
    for point in read:
        by_start.setdefault(point.starts_at.astimezone(UTC), []).append(point)
        by_task.setdefault((point.task, point.queue), []).append(point)
    return Statistics(
        window=window,
        step=step,
        points=[_point(start, points) for start, points in sorted(by_start.items())],
        total=_point(first, read),
        tasks=[_of_task(name, on, starts, points) for (name, on), points in sorted(by_task.items())],
    )


def _floor(moment: datetime, step: int) -> datetime:
    seconds = int(moment.timestamp())
    return datetime.fromtimestamp(seconds - seconds % step, UTC)


def _point(start: datetime, points: list[Point]) -> PointView:
    waits, runs = _waits(points), _runs(points)
    return PointView(
        starts_at=start,
        **_outcomes(points),
        wait_p50=statistic.quantile(waits, 0.5),
        wait_p95=statistic.quantile(waits, 0.95),
        run_p50=statistic.quantile(runs, 0.5),
        run_p95=statistic.quantile(runs, 0.95),
        run_p99=statistic.quantile(runs, 0.99),
    )


def _of_task(name: str, queue: str, starts: list[datetime], points: list[Point]) -> TaskStatistic:
    runs = _runs(points)
    attempts = dict.fromkeys(starts, 0)
    for point in points:
        attempts[point.starts_at.astimezone(UTC)] += point.count
    outcomes = _outcomes(points)
    return TaskStatistic(
        task=name,
        queue=queue,
        succeeded=outcomes.get("succeeded", 0),
        failed=outcomes.get("failed", 0),
        retried=outcomes.get("retried", 0),
        attempts=list(attempts.values()),
        wait_p95=statistic.quantile(_waits(points), 0.95),
        run_p50=statistic.quantile(runs, 0.5),
        run_p95=statistic.quantile(runs, 0.95),
        run_p99=statistic.quantile(runs, 0.99),
    )


def _outcomes(points: list[Point]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for point in points:
        counts[point.outcome] = counts.get(point.outcome, 0) + point.count
    return counts


def _waits(points: list[Point]) -> list[int]:
    return statistic.add([point.waits for point in points])


def _runs(points: list[Point]) -> list[int]:
    return statistic.add([point.runs for point in points])
