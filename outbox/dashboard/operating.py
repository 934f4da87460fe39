"""The pages for those who operate it all: workers, the doctor, and what people have done."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from sqlalchemy.ext.asyncio import AsyncSession

from outbox import audit, presence, status
from outbox.dashboard.render import page
from outbox.dashboard.route import PageRoute
from outbox.doctor import diagnose
from outbox.fastapi.access import Principal
from outbox.fastapi.api import Api
from outbox.job import Job, State
from outbox.status import JobFilter

PAGE = 50
"""Deeds on a page."""


def area(api: Api) -> APIRouter:
    """The routes."""
    router = APIRouter(route_class=PageRoute, include_in_schema=False)
    Session = Annotated[AsyncSession, api.session]  # noqa: N806 - types, here and below
    Overseer = Annotated[Principal, api.overseer]  # noqa: N806
    Manager = Annotated[Principal, api.manager]  # noqa: N806
    Admin = Annotated[Principal, api.admin]  # noqa: N806

    @router.get("/workers")
    async def show_workers(request: Request, session: Session, who: Overseer) -> Response:
        running = await status.page(session, JobFilter(states=[State.RUNNING]), limit=status.MAX_PAGE)
        jobs: dict[UUID | None, list[Job]] = {}
        for job in running.jobs:
            jobs.setdefault(job.worker_id, []).append(job)
        return page(request, "workers", who, workers=await presence.workers(session), jobs=jobs)

    @router.get("/doctor")
    async def show_doctor(request: Request, who: Manager) -> Response:
        # In a session of its own, whose settings are those that others have.
        async with api.sessions() as session:
            return page(request, "doctor", who, diagnosis=await diagnose(await session.connection()))

    @router.get("/audit")
    async def show_audit(
        request: Request, session: Session, who: Admin, before: Annotated[int | None, Query(ge=1, lt=2**63)] = None
    ) -> Response:
        deeds = await audit.page(session, limit=PAGE, before=before)
        older = deeds[-1].id if len(deeds) == PAGE else None
        return page(request, "audit", who, deeds=deeds, before=before, older=older)

    return router
