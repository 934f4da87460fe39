"""Batches over HTTP."""

from dataclasses import asdict
from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field
from sqlalchemy.ext.asyncio import AsyncSession

from outbox import audit, batch
from outbox.batch import Batch, BatchState
from outbox.errors import BatchNotFound
from outbox.fastapi.access import Principal, responses_of
from outbox.fastapi.api import Api
from outbox.fastapi.route import GuardedRoute
from outbox.fastapi.views import POLL_AGAIN


class BatchLinks(BaseModel):
    """Where to go from here; what cannot be done any more is missing."""

    self: str
    cancel: str | None = None


class BatchView(BaseModel):
    """A batch, and how many of its jobs have ended how."""

    id: UUID
    name: str
    tenant: str | None = None
    total: int
    succeeded: int
    failed: int
    cancelled: int
    done: bool = Field(description="Whether all of its jobs have ended.")
    created_at: datetime
    finished_at: datetime | None = Field(description="When they had for the first time; a retry does not change that.")
    links: BatchLinks


class BatchPage(BaseModel):
    """Batches, the newest first."""

    data: list[BatchView]
    next_cursor: UUID | None = Field(None, description="Pass as cursor for the next page; null on the last.")


class BatchReference(BaseModel):
    """A batch that a business answer started."""

    id: UUID
    name: str
    total: int
    links: BatchLinks


def area(api: Api) -> APIRouter:
    """The routes."""
    router = APIRouter(prefix="/batches", tags=["batches"], route_class=GuardedRoute)
    Session = Annotated[AsyncSession, api.session]  # noqa: N806 - types, here and below
    Reader = Annotated[Principal, api.reader]  # noqa: N806
    Operator = Annotated[Principal, api.operator]  # noqa: N806

    @router.get("", operation_id="batches_list", responses=responses_of(422))
    async def list_batches(
        request: Request,
        session: Session,
        who: Reader,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        cursor: UUID | None = None,
    ) -> BatchPage:
        """Batches, the newest first."""
        found = await batch.page(session, limit=limit, before=cursor, tenant=who.tenant)
        next_cursor = found[-1].id if len(found) == limit else None
        return BatchPage(data=[_view(request, each) for each in found], next_cursor=next_cursor)

    @router.get("/{batch_id}", name="outbox_batch", operation_id="batches_get", responses=responses_of(404, 422))
    async def get_batch(
        request: Request, response: Response, session: Session, who: Reader, batch_id: UUID
    ) -> BatchView:
        """One batch: how far it is."""
        state = await batch.get(session, batch_id, tenant=who.tenant)
        if state is None:
            raise BatchNotFound(batch_id)
        return _answer(request, response, state)

    @router.post("/{batch_id}/cancel", operation_id="batches_cancel", responses=responses_of(404, 422))
    async def cancel_batch(
        request: Request, response: Response, session: Session, who: Operator, batch_id: UUID
    ) -> BatchView:
        """Cancel its jobs: those that wait at once; the workers of those that run are asked to."""
        state = await batch.cancel(session, batch_id, tenant=who.tenant)
        await audit.write(session, who.name, "cancel", f"batch {batch_id}", tenant=who.tenant)
        return _answer(request, response, state)

    return router


def accepted_batch(request: Request, response: Response, started: Batch) -> BatchReference:
    """Make the answer a 202 that names where to ask for the batch, and return a reference to it."""
    links = _links(request, started.id, done=False)
    response.status_code = 202
    response.headers["Location"] = links.self
    response.headers["Retry-After"] = str(POLL_AGAIN)
    return BatchReference(id=started.id, name=started.name, total=len(started), links=links)


def _answer(request: Request, response: Response, state: BatchState) -> BatchView:
    shown = _view(request, state)
    response.headers["Cache-Control"] = "private, no-cache"
    if not shown.done:
        response.headers["Retry-After"] = str(POLL_AGAIN)
    return shown


def _view(request: Request, state: BatchState) -> BatchView:
    done = state.succeeded + state.failed + state.cancelled == state.total
    return BatchView(**asdict(state), done=done, links=_links(request, state.id, done=done))


def _links(request: Request, id: UUID, *, done: bool) -> BatchLinks:
    address = request.url_for("outbox_batch", batch_id=id).path
    return BatchLinks(self=address, cancel=None if done else f"{address}/cancel")
