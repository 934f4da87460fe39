"""Workers over HTTP: which are up, and what each does now. And what people have done."""

from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field
from sqlalchemy.ext.asyncio import AsyncSession

from outbox import audit, presence, status
from outbox.fastapi.access import Principal, responses_of
from outbox.fastapi.api import Api
from outbox.fastapi.route import GuardedRoute
from outbox.fastapi.views import JobView, view


class WorkerView(BaseModel):
    """A worker process."""

    id: UUID
    host: str
    pid: int
    queues: dict[str, int] = Field(description="Queue → slots.")
    tasks: dict[str, int] = Field(description="Task that it knows → highest version of its arguments that it reads.")
    started_at: datetime
    seen_at: datetime
    stopping_at: datetime | None = Field(None, description="Since when it claims no more.")
    alive: bool = Field(description="Whether it was heard of within its lease.")
    running: int = Field(description="Jobs that it has claimed, running or next to.")


class WorkerList(BaseModel):
    """All workers that were heard of in the last day, by host."""

    data: list[WorkerView]


class WorkerJobs(BaseModel):
    """What a worker has claimed just now, the longest first."""

    data: list[JobView]


class DeedView(BaseModel):
    """Something that somebody did."""

    id: int
    at: datetime
    actor: str
    tenant: str | None
    action: str
    target: str
    detail: dict[str, Any]


class DeedPage(BaseModel):
    """What was done, the latest first."""

    data: list[DeedView]
    next_cursor: int | None = Field(None, description="Pass as cursor for the next page; null on the last.")


def area(api: Api) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["workers"], route_class=GuardedRoute)
    Session = Annotated[AsyncSession, api.session]  # noqa: N806 - types, here and below
    Overseer = Annotated[Principal, api.overseer]  # noqa: N806
    Admin = Annotated[Principal, api.admin]  # noqa: N806

    @router.get("/workers", operation_id="workers_list", responses=responses_of())
    async def list_workers(session: Session, who: Overseer) -> WorkerList:
        """Which workers are up."""
        return WorkerList(data=[WorkerView(**asdict(each)) for each in await presence.workers(session)])

    @router.get("/workers/{worker_id}/jobs", operation_id="workers_jobs", responses=responses_of(422))
    async def list_jobs_of_worker(request: Request, session: Session, who: Overseer, worker_id: UUID) -> WorkerJobs:
        """What a worker does now."""
        return WorkerJobs(data=[view(request, job, who) for job in await status.claimed_by(session, worker_id)])

    @router.get("/audit", operation_id="audit_list", responses=responses_of(422))
    async def list_deeds(
        session: Session,
        who: Admin,
        limit: Annotated[int, Query(ge=1, le=audit.MAX_PAGE)] = 50,
        cursor: Annotated[int | None, Query(ge=1, lt=2**63)] = None,
    ) -> DeedPage:
        """What people have done over HTTP and on the command line."""
        deeds = await audit.page(session, limit=limit, before=cursor)
        next_cursor = deeds[-1].id if len(deeds) == limit else None
        return DeedPage(data=[DeedView(**asdict(each)) for each in deeds], next_cursor=next_cursor)

    return router
