"""How jobs look from outside: the models of the status API, and the links between its addresses."""

from dataclasses import asdict
from datetime import datetime
from http import HTTPStatus
from typing import Any
from uuid import UUID

from fastapi import Request, Response
from pydantic import BaseModel, Field

from outbox.fastapi.access import Principal
from outbox.job import TRANSITIONS, Job, State
from outbox.keys import Scope
from outbox.newjob import NewJob

POLL_AGAIN = 1
"""Seconds after which a client may ask for a job's state again."""


class Links(BaseModel):
    """Where to go from here; an action that the job's state does not allow is missing."""

    self: str
    events: str = Field(description="The same as it changes, as server-sent events, until it has ended.")
    cancel: str | None = None
    retry: str | None = None


class Progress(BaseModel):
    """How far a job is, as its handler last said."""

    done: int
    total: int | None = None
    message: str | None = None


class ErrorView(BaseModel):
    """One failure in a job's history."""

    attempt: int
    at: datetime
    type: str
    message: str | None = Field(None, description="Null without the scope read:payload: it may repeat an argument.")
    traceback: str | None = Field(None, description="With the scope read:payload only.")
    worker_id: UUID | None = None


class JobView(BaseModel):
    """A job as the status API shows it."""

    id: UUID
    task: str
    queue: str
    state: State
    done: bool = Field(description="Whether the state is final, unless a person retries the job.")
    priority: int = Field(description="3 is claimed first, 0 last.")
    attempt: int = Field(description="Attempts charged so far by the retry policy.")
    max_attempts: int | None
    progress: Progress | None = None
    arguments: dict[str, Any] | None = Field(None, description="Null without the scope read:payload.")
    result: Any = Field(None, description="Null without the scope read:payload.")
    redacted: bool = Field(default=False, description="Whether arguments, result and messages are held back from you.")
    error: ErrorView | None = Field(None, description="The last failure, also of a job that was retried since.")
    errors: list[ErrorView] = Field(description="The last 20 failures, oldest first.")
    tags: list[str]
    key: str | None = Field(None, description="Of the live jobs of its task no other has it.")
    tenant: str | None = None
    batch_id: UUID | None = None
    trace_id: str | None = Field(None, description="Of the trace in which it was enqueued, if there was one.")
    worker_id: UUID | None = Field(None, description="Which worker has, or had, claimed it.")
    group: str | None = Field(None, description="Its jobs run one at a time, in the order of their ids.")
    blocked_by: UUID | None = Field(None, description="The job of its group that is before it; when asked for one job.")
    run_at: datetime = Field(description="Not started before this time.")
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    cancel_requested_at: datetime | None = None
    links: Links


class JobPage(BaseModel):
    """Jobs, newest first."""

    data: list[JobView]
    next_cursor: UUID | None = Field(None, description="Pass as cursor for the next page; null on the last.")
    searched: bool = Field(
        default=False,
        description="Whether the search was cut short: a page that is not full need not be the last then.",
    )


class JobReference(BaseModel):
    """A job that a business answer started."""

    id: UUID
    task: str
    state: State = State.PENDING
    links: Links


def view(request: Request, job: Job, who: Principal, blocked_by: UUID | None = None) -> JobView:
    """A job as whoever asks may see it."""
    values = asdict(job)
    clear = who.may(Scope.READ_PAYLOAD)
    errors = [ErrorView.model_validate(error if clear else error | _HIDDEN) for error in job.errors]
    values.update(
        done=job.done,
        errors=errors,
        error=errors[-1] if errors else None,
        arguments=job.payload if clear else None,
        result=job.result if clear else None,
        redacted=not clear,
        group=job.group_key,
        blocked_by=blocked_by,
        trace_id=job.trace_id,
        links=links(request, job.id, job.state),
    )
    return JobView.model_validate({field: values[field] for field in JobView.model_fields})


_HIDDEN = {"message": None, "traceback": None}


def links(request: Request, id: UUID, state: State) -> Links:
    """The addresses of a job and of what may be done to it in this state."""
    address = request.url_for("outbox_job", job_id=id).path  # behind a proxy that strips a prefix, with it
    return Links(
        self=address,
        events=f"{address}/events",
        cancel=f"{address}/cancel" if state in TRANSITIONS["cancel"] else None,
        retry=f"{address}/retry" if state in TRANSITIONS["requeue"] else None,
    )


def accepted(request: Request, response: Response, *jobs: NewJob) -> list[JobReference]:
    """Make the answer a 202 that names where to ask for the first job, and return references to all of them."""
    references = [JobReference(id=job.id, task=job.task, links=links(request, job.id, State.PENDING)) for job in jobs]
    response.status_code = HTTPStatus.ACCEPTED
    response.headers["Location"] = references[0].links.self
    response.headers["Retry-After"] = str(POLL_AGAIN)
    return references
