"""The pages of batches: how far they are, and what in them comes after what."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from sqlalchemy.ext.asyncio import AsyncSession

from outbox import audit, batch, status
from outbox.dashboard import graph
from outbox.dashboard.forms import Form, back, form
from outbox.dashboard.render import page, site
from outbox.dashboard.route import PageRoute
from outbox.errors import BatchNotFound
from outbox.family import family
from outbox.fastapi.access import Principal
from outbox.fastapi.api import Api
from outbox.status import JobFilter

PAGE = 50
"""Batches on a page, and jobs of one."""


def area(api: Api) -> APIRouter:
    """The routes."""
    router = APIRouter(prefix="/batches", route_class=PageRoute, include_in_schema=False)
    Session = Annotated[AsyncSession, api.session]  # noqa: N806 - types, here and below
    Reader = Annotated[Principal, api.reader]  # noqa: N806
    Operator = Annotated[Principal, api.operator]  # noqa: N806

    @router.get("")
    async def show_batches(request: Request, session: Session, who: Reader, before: UUID | None = None) -> Response:
        found = await batch.page(session, limit=PAGE, before=before, tenant=who.tenant)
        older = found[-1].id if len(found) == PAGE else None
        return page(request, "batches", who, batches=found, before=before, older=older)

    @router.get("/{batch_id}")
    async def show_batch(request: Request, session: Session, who: Reader, batch_id: UUID) -> Response:
        state = await batch.get(session, batch_id, tenant=who.tenant)
        if state is None:
            raise BatchNotFound(batch_id)
        jobs = (await status.page(session, JobFilter(batch=batch_id, tenant=who.tenant), limit=PAGE)).jobs
        tied = await family(session, [job.id for job in jobs], tenant=who.tenant)
        then = await batch.follow_ups(session, batch_id)
        return page(request, "batch", who, batch=state, jobs=jobs, then=then, graph=graph.draw(tied), more=tied.more)

    @router.post("/{batch_id}/cancel")
    async def cancel_batch(
        request: Request, session: Session, who: Operator, batch_id: UUID, sent: Annotated[Form, Depends(form)]
    ) -> Response:
        await batch.cancel(session, batch_id, tenant=who.tenant)
        await audit.write(session, who.name, "cancel", f"batch {batch_id}", tenant=who.tenant)
        return back(request, sent, site(request).at("batches", batch_id), said="cancel")

    return router
