"""What a person may do to jobs over HTTP: to one, to many by their ids, or to all that a filter finds."""

from collections.abc import Mapping, Sequence
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field, model_validator
from sqlalchemy.ext.asyncio import AsyncSession

from outbox import audit, control, status
from outbox.control import Action, Change
from outbox.fastapi.access import Principal, responses_of
from outbox.fastapi.api import Api, found
from outbox.fastapi.filters import JobQuery
from outbox.fastapi.route import GuardedRoute
from outbox.fastapi.views import JobView, view
from outbox.job import Job
from outbox.status import JobFilter


class Priority(BaseModel):
    """A new priority."""

    model_config = {"extra": "forbid"}

    priority: int = Field(ge=0, le=3, description="3 is claimed first.")


class Many(BaseModel):
    """Which jobs, and what is to be done to them."""

    model_config = {"extra": "forbid"}

    ids: list[UUID] | None = Field(None, min_length=1, max_length=1000)
    filter: JobQuery | None = None
    limit: int = Field(1000, ge=1, le=control.MANY, description="Of more than this the oldest; ask again for the rest.")
    cursor: UUID | None = Field(None, description="The next_cursor of the portion before this one.")
    priority: int | None = Field(None, ge=0, le=3, description="The new one, where the action is priority.")
    dry_run: bool = Field(default=False, description="Only count them.")

    def which(self, who: Principal) -> JobFilter | list[UUID]:
        """The same in the library's words."""
        return self.filter.filter(who) if self.filter is not None else self.ids or []

    @model_validator(mode="after")
    def _one_of_both(self) -> "Many":
        if (self.ids is None) == (self.filter is None):
            raise ValueError("give ids or filter, and not both")
        return self


class Changed(BaseModel):
    """What became of many jobs."""

    matched: int = Field(description="How many were found in a state from which the action is legal, limit at most.")
    changed: int = Field(description="How many were changed, or would be; the others had changed meanwhile.")
    next_cursor: UUID | None = Field(None, description="Ask again with it as cursor; null if a filter finds no more.")
    dry_run: bool


def area(api: Api) -> APIRouter:
    """The routes."""
    router = APIRouter(prefix="/jobs", tags=["jobs"], route_class=GuardedRoute)
    Session = Annotated[AsyncSession, api.session]  # noqa: N806 - types, here and below
    Operator = Annotated[Principal, api.operator]  # noqa: N806

    @router.post("/bulk/{action}", operation_id="jobs_bulk", responses=responses_of(422))
    async def change_jobs(session: Session, who: Operator, action: Action, body: Many) -> Changed:
        """Do something to many jobs; those for which it is not legal stay as they are.

        For more than `limit` ask again with `cursor` from `next_cursor`, until that is null: each portion is a
        transaction of its own, and the workers have time in between.
        """
        if action == "priority" and body.priority is None:
            raise _missing_priority()
        change = await change_many(
            session,
            who,
            action,
            body.which(who),
            {"ids": len(body.ids)} if body.ids is not None else {"filter": _said(body)},
            limit=body.limit,
            after=body.cursor,
            dry_run=body.dry_run,
            priority=body.priority,
        )
        return Changed(matched=change.matched, changed=change.changed, next_cursor=change.next, dry_run=body.dry_run)

    @router.post("/{job_id}/cancel", operation_id="jobs_cancel", responses=responses_of(404, 409, 422))
    async def cancel_job(request: Request, session: Session, who: Operator, job_id: UUID) -> JobView:
        """Cancel a job: at once if it waits; if it runs, its worker is asked to. The answer says what happened."""
        return view(request, await change_one(session, who, "cancel", job_id), who)

    @router.post("/{job_id}/retry", operation_id="jobs_retry", responses=responses_of(404, 409, 422))
    async def retry_job(request: Request, session: Session, who: Operator, job_id: UUID) -> JobView:
        """Run a failed or cancelled job again, with all its attempts before it."""
        return view(request, await change_one(session, who, "retry", job_id), who)

    @router.post("/{job_id}/run", operation_id="jobs_run", responses=responses_of(404, 409, 422))
    async def run_job(request: Request, session: Session, who: Operator, job_id: UUID) -> JobView:
        """Have a job that waits for its time run as soon as it can."""
        return view(request, await change_one(session, who, "run", job_id), who)

    @router.patch("/{job_id}", operation_id="jobs_change", responses=responses_of(404, 409, 422))
    async def change_job(request: Request, session: Session, who: Operator, job_id: UUID, body: Priority) -> JobView:
        """Give a job that waits another priority."""
        return view(request, await change_one(session, who, "priority", job_id, priority=body.priority), who)

    @router.delete("/{job_id}", status_code=204, operation_id="jobs_discard", responses=responses_of(404, 409, 422))
    async def discard_job(session: Session, who: Operator, job_id: UUID) -> None:
        """Delete a job that has ended, with its result and its errors."""
        await change_one(session, who, "discard", job_id)

    return router


async def change_one(
    session: AsyncSession, who: Principal, action: Action, id: UUID, *, priority: int | None = None
) -> Job:
    """Do something to a job and write down who did; the job as it is then, or as it was if it is no more.

    :raises JobNotFound: if there is none, or not for them.
    :raises IllegalTransition: if its state does not allow it.
    :raises KeyTaken: if it is to run again, and a live job has its key.
    """
    before = await found(session, id, who)
    match action:
        case "cancel":
            now = await control.cancel(session, id)
        case "retry":
            now = await control.requeue(session, id)
        case "run":
            now = await control.run_now(session, id)
        case "priority":
            now = await control.set_priority(session, id, 1 if priority is None else priority)
        case _:
            await control.discard(session, id)
            now = before
    said = {"before": _state(before)} if action == "discard" else {"before": _state(before), "after": _state(now)}
    await audit.write(session, who.name, action, f"job {id}", tenant=who.tenant, task=before.task, **said)
    return now


async def change_many(
    session: AsyncSession,
    who: Principal,
    action: Action,
    which: JobFilter | Sequence[UUID],
    said: Mapping[str, object],
    *,
    limit: int,
    after: UUID | None = None,
    dry_run: bool = False,
    priority: int | None = None,
) -> Change:
    """Do something to many jobs and write down who did.

    :param said: which these were, for the audit; it holds no arguments.
    """
    await status.read_by_index(session)
    change = await control.change_many(
        session, action, which, limit=limit, after=after, dry_run=dry_run, priority=priority, tenant=who.tenant
    )
    if change.changed and not dry_run:
        await audit.write(session, who.name, action, "jobs", tenant=who.tenant, changed=change.changed, **said)
    return change


def _state(job: Job) -> dict[str, object]:
    return {"state": job.state, "priority": job.priority, "run_at": job.run_at}


def _said(body: Many) -> dict[str, object]:
    assert body.filter is not None
    # Not what the arguments contain: an audit holds no arguments.
    return body.filter.model_dump(mode="json", exclude_defaults=True, exclude={"arguments"})


def _missing_priority() -> Exception:
    error = {"type": "missing", "loc": ("body", "priority"), "msg": "Field required", "input": None}
    return RequestValidationError([error])
