"""The first page: how things are, what needs somebody, and how it went."""

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response
from sqlalchemy.ext.asyncio import AsyncSession

from outbox import presence, queue, statistic, status
from outbox.dashboard import attention, charts
from outbox.dashboard.render import page, site
from outbox.dashboard.route import PageRoute
from outbox.dashboard.search import Search
from outbox.fastapi.access import Principal
from outbox.fastapi.api import Api
from outbox.fastapi.filters import Name
from outbox.fastapi.statistics import WINDOWS, Window, collect
from outbox.job import State
from outbox.status import JobFilter

LATEST = 8
"""Failed jobs that are shown."""


def area(api: Api) -> APIRouter:
    """The route."""
    router = APIRouter(route_class=PageRoute, include_in_schema=False)
    Session = Annotated[AsyncSession, api.session]  # noqa: N806 - types, here and below
    Reader = Annotated[Principal, api.reader]  # noqa: N806

    @router.get("", name="outbox_dashboard")
    async def show_overview(
        request: Request,
        session: Session,
        who: Reader,
        window: Window = "1h",
        queue: Annotated[Name | None, Query()] = None,
        task: Annotated[Name | None, Query()] = None,
    ) -> Response:
        if who.tenant is not None:  # how all do together is not theirs to see
            return RedirectResponse(site(request).at("jobs"), 303)
        values = await _collect(session, window, queue or None, task or None)
        declared = {each.name for each in api.outbox}
        names = sorted(declared | {each.task for each in values["tasks"]})
        return page(request, "overview", who, task_names=names, **values)

    return router


async def _collect(session: AsyncSession, window: Window, only: str | None, task: str | None) -> dict[str, Any]:
    statistics = await collect(session, window, queue=only, task=task)
    now = datetime.now(UTC)
    seen = await statistic.backlog(session, statistics.points[0].starts_at, now, step=statistics.step)
    queues, workers = await queue.states(session), await presence.workers(session)
    troubled = await attention.troubled(session)
    failures = await status.page(session, JobFilter(states=[State.FAILED]), limit=LATEST)
    return {
        "verdict": attention.verdict(queues, workers, troubled, statistics, now),
        "troubled": troubled,
        "troubled_most": attention.MOST,
        "window": window,
        "windows": list(WINDOWS),
        "queue": only,
        "task": task,
        "search": Search(tuple((word, value) for word, value in (("queue", only), ("task", task)) if value)),
        "total": statistics.total,
        "minutes": WINDOWS[window][0].total_seconds() / 60,
        "tasks": statistics.tasks,
        "throughput": charts.throughput(statistics),
        "waits": charts.waits(statistics),
        "runs": charts.runs(statistics),
        "backlog": charts.backlog(statistics, [each for each in seen if only in (None, each.queue)]),
        "queues": queues,
        "most": queue.MOST,
        "workers": workers,
        "failures": failures.jobs,
    }
