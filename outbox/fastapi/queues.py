"""Queues over HTTP: how they stand, and what a person may say of them."""

from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from sqlalchemy.ext.asyncio import AsyncSession

from outbox import audit, limit, queue
from outbox.fastapi.access import Principal, responses_of
from outbox.fastapi.api import Api
from outbox.fastapi.filters import NewName
from outbox.fastapi.route import GuardedRoute
from outbox.limit import Limit


class QueueView(BaseModel):
    """How a queue stands. Jobs that wait for others, in a group or a flow, do not count."""

    name: str
    paused_at: datetime | None = Field(None, description="Since when none of its jobs is claimed.")
    ceiling: int | None = Field(None, description="How many jobs may wait in it before more are refused.")
    ready: int = Field(description="Jobs that are due and wait; 10,000 may be more.")
    scheduled: int = Field(description="Jobs that are not due yet; 10,000 may be more.")
    running: int
    oldest: datetime | None = Field(None, description="When the one was due that has waited longest.")
    workers: int
    slots: int = Field(description="Of all workers that serve it.")
    pace: float = Field(description="Attempts that ended in a second, on the average of five minutes.")


class QueueList(BaseModel):
    """All queues that have jobs, workers, or something said of them, by name."""

    data: list[QueueView]


class Ceiling(BaseModel):
    """How many jobs may wait; null for any number."""

    model_config = {"extra": "forbid"}

    ceiling: int | None = Field(ge=0, le=1_000_000)


class LimitView(BaseModel):
    """How many jobs at most, and of what."""

    scope: Literal["task", "queue"]
    name: str
    per_key: bool = Field(description="Whether for the jobs of each limit_key apart.")
    concurrency: int | None = Field(None, description="Jobs that run at once.")
    rate: float | None = Field(None, description="Jobs that start in a second.")
    burst: int = Field(1, description="Jobs that may start at once when none has started for a while.")
    declared: bool = Field(description="Whether code says so, or a person, whom no code overrules.")


class LimitList(BaseModel):
    """All limits, by name."""

    data: list[LimitView]


class LimitIn(BaseModel):
    """A limit; at least one of concurrency and rate must be said."""

    model_config = {"extra": "forbid"}

    concurrency: int | None = Field(None, ge=0, le=1_000_000)
    rate: float | None = Field(None, gt=0, le=1_000_000, description="In a second.")
    burst: int = Field(1, ge=1, le=1_000_000)


def area(api: Api) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["queues"], route_class=GuardedRoute)
    Session = Annotated[AsyncSession, api.session]  # noqa: N806 - types, here and below
    Overseer = Annotated[Principal, api.overseer]  # noqa: N806
    Manager = Annotated[Principal, api.manager]  # noqa: N806

    @router.get("/queues", operation_id="queues_list", responses=responses_of())
    async def list_queues(session: Session, who: Overseer) -> QueueList:
        """How every queue stands."""
        return QueueList(data=[QueueView(**asdict(each)) for each in await queue.states(session)])

    @router.post("/queues/{name}/pause", status_code=204, operation_id="queues_pause", responses=responses_of(422))
    async def pause_queue(session: Session, who: Manager, name: NewName) -> None:
        """Have no worker claim its jobs any more; those that run go on, and enqueuing goes on too."""
        await queue.pause(session, name)
        await audit.write(session, who.name, "pause", f"queue {name}")

    @router.post("/queues/{name}/resume", status_code=204, operation_id="queues_resume", responses=responses_of(422))
    async def resume_queue(session: Session, who: Manager, name: NewName) -> None:
        """Have workers claim its jobs again."""
        await queue.resume(session, name)
        await audit.write(session, who.name, "resume", f"queue {name}")

    @router.put("/queues/{name}/ceiling", status_code=204, operation_id="queues_ceiling", responses=responses_of(422))
    async def set_ceiling(session: Session, who: Manager, name: NewName, body: Ceiling) -> None:
        """Refuse further jobs while so many wait in it."""
        await queue.set_ceiling(session, name, body.ceiling)
        await audit.write(session, who.name, "ceiling", f"queue {name}", ceiling=body.ceiling)

    @router.get("/limits", operation_id="limits_list", responses=responses_of())
    async def list_limits(session: Session, who: Overseer) -> LimitList:
        """All limits, of tasks and of queues."""
        return LimitList(
            data=[
                LimitView(
                    scope=each.scope,
                    name=each.name,
                    per_key=each.per_key,
                    concurrency=each.limit.concurrency,
                    rate=each.limit.rate_per_second,
                    burst=each.limit.burst,
                    declared=each.declared,
                )
                for each in await limit.rules(session)
            ]
        )

    @router.put("/limits/{scope}/{name}", status_code=204, operation_id="limits_put", responses=responses_of(422))
    async def put_limit(
        session: Session,
        who: Manager,
        scope: Literal["task", "queue"],
        name: NewName,
        body: LimitIn,
        per_key: bool = False,
    ) -> None:
        """Set a limit, whatever code declares: of a task or a queue, or of each limit_key in it."""
        try:
            wanted = Limit(concurrency=body.concurrency, rate=body.rate, burst=body.burst)
        except ValueError as exc:
            error = {"type": "value_error", "loc": ("body",), "msg": str(exc), "input": None}
            raise RequestValidationError([error]) from exc
        await limit.put(session, scope, name, wanted, per_key=per_key)
        await audit.write(
            session, who.name, "limit", f"{scope} {name}", per_key=per_key, **body.model_dump(exclude_none=True)
        )

    @router.delete("/limits/{scope}/{name}", status_code=204, operation_id="limits_delete", responses=responses_of(422))
    async def delete_limit(
        session: Session, who: Manager, scope: Literal["task", "queue"], name: NewName, per_key: bool = False
    ) -> None:
        """Remove a limit. One that code declares is back when the next worker starts."""
        await limit.remove(session, scope, name, per_key=per_key)
        await audit.write(session, who.name, "unlimit", f"{scope} {name}", per_key=per_key)

    return router
