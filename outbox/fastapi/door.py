"""Enqueue over HTTP, for callers without a session: other services, and scripts."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import AwareDatetime, BaseModel, Field
from sqlalchemy.ext.asyncio import AsyncSession

from outbox.errors import PayloadInvalid
from outbox.fastapi.access import Principal, responses_of
from outbox.fastapi.api import Api
from outbox.fastapi.idempotency import idempotent_route
from outbox.fastapi.route import GuardedRoute
from outbox.fastapi.views import JobReference, accepted
from outbox.newjob import NewJob
from outbox.registry import Outbox

MANY = 1000
"""Jobs at most that one request enqueues."""


class JobIn(BaseModel):
    """A job to enqueue. What is not said is as the task declares it."""

    model_config = {
        "extra": "forbid",
        "json_schema_extra": {"examples": [{"task": "send_receipt", "arguments": {"order_id": "..."}, "delay": 60}]},
    }

    task: str = Field(max_length=200, description="One of those that GET /tasks lists.")
    arguments: dict[str, Any] = {}
    queue: str | None = Field(None, max_length=200)
    priority: int | None = Field(None, ge=0, le=3, description="3 is claimed first.")
    delay: float | None = Field(None, ge=0, le=31_536_000, description="Seconds from now.")
    run_at: AwareDatetime | None = None
    max_attempts: int | None = Field(None, ge=1, le=32_767)
    tags: list[Annotated[str, Field(max_length=200)]] | None = Field(None, max_length=50)
    group: str | None = Field(None, max_length=200)
    limit_key: str | None = Field(None, max_length=200)
    key: str | None = Field(None, max_length=200)
    unique_for: float | None = Field(None, ge=0, le=31_536_000)
    on_conflict: Literal["keep", "replace", "reject"] | None = None
    tenant: str | None = Field(None, max_length=200, description="Yours, and nobody else's, if your key has one.")


class JobsIn(BaseModel):
    """Jobs to enqueue: all of them, or none."""

    model_config = {"extra": "forbid"}

    jobs: list[JobIn] = Field(min_length=1, max_length=MANY)


class JobReferences(BaseModel):
    """The jobs that were enqueued, in the order in which they were given."""

    data: list[JobReference]


def area(api: Api) -> APIRouter:
    """The routes."""
    Session = Annotated[AsyncSession, api.session]  # noqa: N806 - types, here and below
    Enqueuer = Annotated[Principal, api.enqueuer]  # noqa: N806
    # Who asks is known before the key is looked at: one caller's keys are not another's.
    once = idempotent_route(api.get_session, scope=lambda request: request.state.outbox_principal)
    route: type[APIRoute] = type("DoorRoute", (GuardedRoute, once), {})
    router = APIRouter(tags=["jobs"], route_class=route, dependencies=[api.enqueuer])

    @router.post("/jobs", status_code=202, operation_id="jobs_enqueue", responses=responses_of(409, 422))
    async def enqueue_job(
        request: Request, response: Response, session: Session, who: Enqueuer, body: JobIn
    ) -> JobReference:
        """Enqueue a job by the name of its task. Its arguments are checked now."""
        [job] = await api.outbox.enqueue_many(session, [_new_job(api.outbox, body, who, ("body",))])
        return accepted(request, response, job)[0]

    @router.post("/jobs/batch", status_code=202, operation_id="jobs_enqueue_many", responses=responses_of(409, 422))
    async def enqueue_jobs(
        request: Request, response: Response, session: Session, who: Enqueuer, body: JobsIn
    ) -> JobReferences:
        """Enqueue up to 1,000 jobs: all of them, or none."""
        jobs = [_new_job(api.outbox, each, who, ("body", "jobs", n)) for n, each in enumerate(body.jobs)]
        return JobReferences(data=accepted(request, response, *await api.outbox.enqueue_many(session, jobs)))

    return router


def _new_job(outbox: Outbox, body: JobIn, who: Principal, where: tuple[str | int, ...]) -> NewJob:
    if body.task not in outbox:
        raise _invalid((*where, "task"), "this service knows no such task")
    if who.tenant is not None and body.tenant not in (None, who.tenant):
        raise _invalid((*where, "tenant"), "is not yours")
    options = body.model_dump(exclude={"task", "arguments"}, exclude_none=True)
    if who.tenant is not None:
        options["tenant"] = who.tenant
    try:
        return outbox[body.task].options(**options).job(**body.arguments)
    except PayloadInvalid as exc:
        raise _invalid((*where, "arguments", *_parts(exc.path)), exc.reason) from exc
    except (ValueError, TypeError) as exc:
        field, _, reason = str(exc).partition(":")
        raise _invalid((*where, *([field] if reason else [])), reason.strip() or str(exc)) from exc


def _parts(path: str) -> list[str]:
    inner = path.removeprefix("$").removeprefix(".")
    return [inner] if inner else []


def _invalid(where: Sequence[str | int], reason: str) -> RequestValidationError:
    return RequestValidationError([{"type": "value_error", "loc": tuple(where), "msg": reason, "input": None}])
