"""The REST API of batches, mountable by any application."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Request, Response, params
from pydantic import BaseModel, Field
from sqlalchemy.ext.asyncio import AsyncSession

from outbox import batch
from outbox.batch import Batch, BatchState
from outbox.errors import BatchNotFound
from outbox.fastapi.problems import problem_responses
from outbox.fastapi.unit_of_work import GetSession
from outbox.fastapi.views import POLL_AGAIN


class BatchLinks(BaseModel):
    """Where to go from here; what cannot be done any more is missing."""

    self: str
    cancel: str | None = None


class BatchView(BaseModel):
    """A batch, and how many of its jobs have ended how."""

    id: UUID
    name: str
    total: int
    succeeded: int
    failed: int
    cancelled: int
    done: bool = Field(description="Whether all of its jobs have ended.")
    created_at: datetime
    finished_at: datetime | None = Field(description="When they had for the first time; a retry does not change that.")
    links: BatchLinks


class BatchReference(BaseModel):
    """A batch that a business answer started."""

    id: UUID
    name: str
    total: int
    links: BatchLinks


def batches_router(
    *, session: GetSession, dependencies: Sequence[params.Depends] = (), path: str = "/batches"
) -> APIRouter:
    """The REST API of batches, to be included under a prefix of your choice.

    :param session: the application's session dependency.
    :param dependencies: who may ask; the router checks nothing by itself.
    """
    router = APIRouter(prefix=path, tags=["batches"], dependencies=list(dependencies))
    Session = Annotated[AsyncSession, Depends(session, scope="function")]  # noqa: N806 - a type

    @router.get("/{batch_id}", name="outbox_batch", operation_id="batches_get", responses=problem_responses(404, 422))
    async def get_batch(request: Request, response: Response, session: Session, batch_id: UUID) -> BatchView:
        """One batch: how far it is."""
        state = await batch.get(session, batch_id)
        if state is None:
            raise BatchNotFound(batch_id)
        return _answer(request, response, state)

    @router.post("/{batch_id}/cancel", operation_id="batches_cancel", responses=problem_responses(404, 422))
    async def cancel_batch(request: Request, response: Response, session: Session, batch_id: UUID) -> BatchView:
        """Cancel its jobs: those that wait at once; the workers of those that run are asked to."""
        return _answer(request, response, await batch.cancel(session, batch_id))

    return router


def accepted_batch(request: Request, response: Response, started: Batch) -> BatchReference:
    """Make the answer a 202 that names where to ask for the batch, and return a reference to it."""
    links = _links(request, started.id, done=False)
    response.status_code = 202
    response.headers["Location"] = links.self
    response.headers["Retry-After"] = str(POLL_AGAIN)
    return BatchReference(id=started.id, name=started.name, total=len(started), links=links)


def _answer(request: Request, response: Response, state: BatchState) -> BatchView:
    done = state.succeeded + state.failed + state.cancelled == state.total
    response.headers["Cache-Control"] = "private, no-cache"
    if not done:
        response.headers["Retry-After"] = str(POLL_AGAIN)
    return BatchView(**asdict(state), done=done, links=_links(request, state.id, done=done))


def _links(request: Request, id: UUID, *, done: bool) -> BatchLinks:
    address = request.url_for("outbox_batch", batch_id=id).path
    return BatchLinks(self=address, cancel=None if done else f"{address}/cancel")
