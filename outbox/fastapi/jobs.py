"""Jobs over HTTP, for those who wait for them."""

import asyncio
import re
from hashlib import sha256
from typing import Annotated, Any, Literal, Union
from uuid import UUID

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import BaseModel, Field, create_model
from sqlalchemy.ext.asyncio import AsyncSession

from outbox import explain, status
from outbox.fastapi.access import Principal, responses_of
from outbox.fastapi.api import Api, found
from outbox.fastapi.filters import JobQuery
from outbox.fastapi.route import GuardedRoute
from outbox.fastapi.views import POLL_AGAIN, JobPage, JobView, view
from outbox.job import TERMINAL, Job
from outbox.registry import Outbox
from outbox.watch import WatchClosed

LONGEST_WAIT = 60
"""Seconds that a request may wait for its job."""

_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,6})")


class PageQuery(JobQuery):
    """Filters of the list; repeat a parameter to allow several values."""

    limit: int = Field(50, ge=1, le=status.MAX_PAGE)
    cursor: UUID | None = None


class ReasonView(BaseModel):
    """One thing that keeps a job from running now."""

    code: explain.Code
    text: str
    jobs: list[UUID] = Field([], description="The jobs that it waits for, ten at most.")


class ExplanationView(BaseModel):
    """Why a job does not run."""

    id: UUID
    ready: bool = Field(description="Whether the next claim of a worker with a free slot may take it.")
    reasons: list[ReasonView]
    ahead: int | None = Field(None, description="Jobs of its queue that are claimed before it; 10,000 may be more.")
    seconds: float | None = Field(None, description="Until its turn, at the pace of the last five minutes.")


class TaskView(BaseModel):
    """A task that this service declares."""

    name: str
    queue: str
    priority: int
    max_attempts: int | None
    timeout: float | None
    version: int
    arguments: dict[str, Any] = Field(description="JSON Schema of its arguments.")


class TaskList(BaseModel):
    """All tasks, by name."""

    data: list[TaskView]


def area(api: Api) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["jobs"], route_class=GuardedRoute)
    Session = Annotated[AsyncSession, api.session]  # noqa: N806 - types, here and below
    Reader = Annotated[Principal, api.reader]  # noqa: N806

    @router.get("/jobs", operation_id="jobs_list", responses=responses_of(422))
    async def list_jobs(
        request: Request, session: Session, who: Reader, query: Annotated[PageQuery, Query()]
    ) -> JobPage:
        """Jobs by filter, newest first; no totals."""
        page = await status.page(session, query.filter(who), limit=query.limit, before=query.cursor)
        data = [view(request, job, who) for job in page.jobs]
        return JobPage(data=data, next_cursor=page.next, searched=page.searched)

    @router.get("/tasks", operation_id="tasks_list", responses=responses_of())
    async def list_tasks(who: Reader) -> TaskList:
        """What this service can run, and with which arguments."""
        return TaskList(data=[_task(api.outbox, name) for name in sorted(each.name for each in api.outbox)])

    @router.get(
        "/jobs/{job_id}",
        name="outbox_job",
        operation_id="jobs_get",
        response_model=_typed(api.outbox),
        responses=responses_of(404, 422) | {304: {"description": "It is as you know it."}},
    )
    async def get_job(
        request: Request,
        who: Reader,
        job_id: UUID,
        prefer: Annotated[str | None, Header(description="`wait=30`: answer when it has ended or changed.")] = None,
        if_none_match: Annotated[str | None, Header(description="The ETag that you know.")] = None,
    ) -> Response:
        """One job. Always 200 for a job that exists: a failed job is not an HTTP error.

        With `Prefer: wait=30` the answer waits, at most so many seconds and 60, until the job has ended; with
        `If-None-Match` too, until it has changed.
        """
        wait, known = _wanted_wait(prefer), _etags(if_none_match)
        job, etag, body = await read(api, request, who, job_id)
        if wait and _is_awaited(job, etag, known):
            await _await(api, request, who, job_id, wait, known)
            job, etag, body = await read(api, request, who, job_id)
        headers = {"ETag": f'"{etag}"', "Cache-Control": "private, no-cache", "Vary": "Authorization, Cookie"}
        if not job.done:
            headers["Retry-After"] = str(POLL_AGAIN)
        if wait:
            headers["Preference-Applied"] = f"wait={wait}"
        if etag in known or "*" in known:
            return Response(status_code=304, headers=headers)
        return Response(body, media_type="application/json", headers=headers)

    @router.get("/jobs/{job_id}/explain", operation_id="jobs_explain", responses=responses_of(404, 422))
    async def explain_job(session: Session, who: Reader, job_id: UUID) -> ExplanationView:
        """Why does it not run? Paused, blocked, limited, not due, unknown to all workers, or simply not next."""
        found_out = await explain.explain(session, job_id, tenant=who.tenant)
        reasons = [ReasonView(code=each.code, text=each.text, jobs=list(each.jobs)) for each in found_out.reasons]
        return ExplanationView(
            id=job_id, ready=found_out.ready, reasons=reasons, ahead=found_out.ahead, seconds=found_out.seconds
        )

    return router


async def read(api: Api, request: Request, who: Principal, id: UUID) -> tuple[Job, str, bytes]:
    """The job, its tag, and how it is shown.

    :raises JobNotFound: if there is none, or not for them.
    """
    # In a session of its own: whoever waits must not hold a connection meanwhile.
    async with api.sessions() as session:
        job = await found(session, id, who)
        blocked_by = await status.blocker(session, job)
    return job, *encoded(view(request, job, who, blocked_by))


def encoded(shown: JobView) -> tuple[str, bytes]:
    """Its tag, which changes whenever it does, and itself as JSON."""
    body = shown.model_dump_json().encode()
    return sha256(body).hexdigest()[:24], body


def _is_awaited(job: Job, etag: str, known: frozenset[str]) -> bool:
    """Whether there is something to wait for."""
    return etag in known if known else job.state not in TERMINAL


async def _await(api: Api, request: Request, who: Principal, id: UUID, seconds: float, known: frozenset[str]) -> None:
    try:
        async with asyncio.timeout(seconds), api.watch.waiting_for(id) as waiter:
            while True:
                job = await waiter.next()
                if job is None or not _is_awaited(job, encoded(view(request, job, who))[0], known):
                    return
    except (TimeoutError, WatchClosed):
        return


def _wanted_wait(prefer: str | None) -> int:
    wanted = _WAIT.search(prefer.lower()) if prefer else None
    return min(int(wanted[1]), LONGEST_WAIT) if wanted else 0


def _etags(header: str | None) -> frozenset[str]:
    """The tags in If-None-Match; a weak one is as good."""
    each = (tag.strip().removeprefix("W/").strip('"') for tag in (header or "").split(","))
    return frozenset(filter(None, each))


def _task(outbox: Outbox, name: str) -> TaskView:
    task = outbox[name]
    return TaskView(
        name=name,
        queue=task.defaults.queue,
        priority=task.defaults.priority,
        max_attempts=task.retry.max_attempts,
        timeout=task.timeout,
        version=task.version,
        arguments=task.arguments_schema,
    )


def _typed(outbox: Outbox) -> Any:
    """What a job looks like, with the result of each task: for the documentation."""
    models = []
    for task in sorted(outbox, key=lambda task: task.name):
        if task.shows_result:
            name: Any = Literal[task.name]  # put together at run time
            fields: dict[str, Any] = {"task": (name, ...), "result": (task.result_type | None, None)}
            models.append(create_model(f"{task.name}_job", __base__=JobView, **fields))
    return Union[*models, JobView] if models else JobView
