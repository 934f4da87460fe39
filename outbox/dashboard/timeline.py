"""What has happened to a job, in order: its attempts, and every time it was delivered to a worker."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from outbox.job import Job, State

Tone = Literal["plain", "good", "bad", "busy"]


@dataclass(frozen=True, slots=True)
class Step:
    """Something that happened, or is to happen.

    :ivar error: what went wrong, as in ``Job.errors``.
    :ivar delivery: which claim of the job it was.
    """

    at: datetime
    title: str
    tone: Tone = "plain"
    worker: UUID | None = None
    delivery: int | None = None
    error: Mapping[str, Any] | None = None


def steps(job: Job) -> list[Step]:
    """All that is known, the oldest first; its end is the last, whatever the clock read."""
    known = sorted(_steps(job), key=lambda step: step.at)
    if job.finished_at is not None:
        tone: Tone = "good" if job.state is State.SUCCEEDED else "bad"
        known.append(Step(max(job.finished_at, known[-1].at), job.state.capitalize(), tone))
    return known


def _steps(job: Job) -> Iterator[Step]:
    yield Step(job.created_at, "Enqueued")
    for error in job.errors:
        at = error.get("at")
        if isinstance(at, str):
            worker, delivery = _id(error.get("worker_id")), error.get("fence")
            yield Step(datetime.fromisoformat(at), _title(error), "bad", worker, delivery, error)
    if job.started_at is not None and job.fence:
        yield Step(job.started_at, f"Delivery {job.fence}: claimed", "busy", job.worker_id, job.fence)
    if job.cancel_requested_at is not None:
        yield Step(job.cancel_requested_at, "Asked to stop", "bad")
    if job.state is State.PENDING and job.blocked is None:
        yield Step(job.run_at, "Due" if not job.errors else "Next attempt is due")


def _title(error: Mapping[str, Any]) -> str:
    match error.get("type"):
        case "outbox.WorkerLost":
            return f"Delivery {error.get('fence')}: its worker was lost"
        case "outbox.PredecessorFailed":
            return "Given up: a job before it did not succeed"
        case _:
            return f"Attempt {error.get('attempt')} failed"


def _id(text: object) -> UUID | None:
    try:
        return UUID(text) if isinstance(text, str) else None
    except ValueError:
        return None
