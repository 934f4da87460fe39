"""The REST status API of jobs, mountable by any application."""

from collections.abc import Sequence
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request, Response, params
from pydantic import AwareDatetime, BaseModel, Field
from sqlalchemy.ext.asyncio import AsyncSession

from outbox import control, status
from outbox.errors import JobNotFound
from outbox.fastapi.problems import problem_responses
from outbox.fastapi.unit_of_work import GetSession
from outbox.fastapi.views import POLL_AGAIN, JobPage, JobView, view
from outbox.job import TERMINAL, Job, State


class JobQuery(BaseModel):
    """Filters; within each any of several values will do."""

    model_config = {"extra": "forbid"}

    state: list[State] = []
    queue: list[Annotated[str, Field(max_length=200, pattern=r"^[^\x00]*$")]] = Field([], max_length=50)
    task: list[Annotated[str, Field(max_length=200, pattern=r"^[^\x00]*$")]] = Field([], max_length=50)
    tag: list[Annotated[str, Field(max_length=200, pattern=r"^[^\x00]*$")]] = Field([], max_length=50)
    created_after: AwareDatetime | None = None
    created_before: AwareDatetime | None = None

    def filter(self) -> status.JobFilter:
        """The same in the library's words."""
        return status.JobFilter(
            states=self.state,
            queues=self.queue,
            tasks=self.task,
            tags=self.tag,
            created_after=self.created_after,
            created_before=self.created_before,
        )


class PageQuery(JobQuery):
    """Filters of the list; repeat a parameter to allow several values."""

    limit: int = Field(50, ge=1, le=status.MAX_PAGE)
    cursor: UUID | None = None


class RetryMany(JobQuery):
    """Which failed and cancelled jobs to run again."""

    limit: int = Field(1000, ge=1, le=10_000, description="Of more than this the oldest; ask again for the others.")
    dry_run: bool = Field(default=False, description="Only count them.")


class Retried(BaseModel):
    """How many jobs are to run again, or would be."""

    count: int
    dry_run: bool


def status_router(
    *, session: GetSession, dependencies: Sequence[params.Depends] = (), path: str = "/jobs"
) -> APIRouter:
    """The REST status API of jobs, to be included under a prefix of your choice.

    :param session: the application's session dependency.
    :param dependencies: who may ask; the router checks nothing by itself.
    """
    router = APIRouter(prefix=path, tags=["jobs"], dependencies=list(dependencies))
    Session = Annotated[AsyncSession, Depends(session, scope="function")]  # noqa: N806 - a type

    @router.get("", operation_id="jobs_list", responses=problem_responses(422))
    async def list_jobs(request: Request, session: Session, query: Annotated[PageQuery, Query()]) -> JobPage:
        """Jobs by filter, newest first."""
        page = await status.page(session, query.filter(), limit=query.limit, before=query.cursor)
        return JobPage(data=[view(request, job) for job in page.jobs], next_cursor=page.next)

    @router.get("/{job_id}", name="outbox_job", operation_id="jobs_get", responses=problem_responses(404, 422))
    async def get_job(request: Request, response: Response, session: Session, job_id: UUID) -> JobView:
        """One job. Always 200 for a job that exists: a failed job is not an HTTP error."""
        job = await status.get(session, job_id)
        if job is None:
            raise JobNotFound(job_id)
        return await _answer(request, response, session, job)

    @router.post("/retry", operation_id="jobs_retry_many", responses=problem_responses(422))
    async def retry_jobs(session: Session, body: RetryMany) -> Retried:
        """Run failed and cancelled jobs again that the filter finds; those whose key is taken stay as they are."""
        count = await control.requeue_many(session, body.filter(), limit=body.limit, dry_run=body.dry_run)
        return Retried(count=count, dry_run=body.dry_run)

    @router.post("/{job_id}/cancel", operation_id="jobs_cancel", responses=problem_responses(404, 409, 422))
    async def cancel_job(request: Request, response: Response, session: Session, job_id: UUID) -> JobView:
        """Cancel a job: at once if it waits; if it runs, its worker is asked to. The answer says what happened."""
        return await _answer(request, response, session, await control.cancel(session, job_id))

    @router.post("/{job_id}/retry", operation_id="jobs_retry", responses=problem_responses(404, 409, 422))
    async def retry_job(request: Request, response: Response, session: Session, job_id: UUID) -> JobView:
        """Run a failed or cancelled job again, with all its attempts before it."""
        return await _answer(request, response, session, await control.requeue(session, job_id))

    return router


async def _answer(request: Request, response: Response, session: AsyncSession, job: Job) -> JobView:
    response.headers["Cache-Control"] = "private, no-cache"
    if job.state not in TERMINAL:
        response.headers["Retry-After"] = str(POLL_AGAIN)
    return view(request, job, await status.blocker(session, job))
