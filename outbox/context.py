"""What one attempt knows of its job: ``Claim``, which the worker holds, and ``JobContext``, its face to the handler."""

from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto
from uuid import UUID

from outbox import payload


class Stop(Enum):
    """Why a running attempt was told to stop."""

    CANCELLED = auto()
    SHUTDOWN = auto()
    LEASE_LOST = auto()
    TIMEOUT = auto()


@dataclass(slots=True, eq=False)
class Claim:
    """A job that this worker may run, as long as its lease is good and its fence is the row's.

    A suspect has lost so many workers that the next would be its last: a worker holds one of them at a time, so that
    no other is blamed for what one of them does.
    ``progress`` and ``stop`` change while it runs: the handler writes the one, the worker the other. Once it is
    ``settling`` in the handler's own transaction nothing stops it any more: its fence decides.
    """

    id: UUID
    task: str
    queue: str
    priority: int
    run_at: datetime
    payload: str
    attempt: int
    max_attempts: int
    fence: int
    created_at: datetime
    worker_id: UUID
    is_suspect: bool = False
    progress: str | None = None
    progress_told: str | None = None
    stop: Stop | None = None
    settling: bool = False


class JobContext:
    """What a handler may ask about the job it runs. A parameter annotated so is injected."""

    __slots__ = ("_claim",)

    def __init__(self, claim: Claim) -> None:
        self._claim = claim

    @property
    def id(self) -> UUID:
        """The job's id; with ``fence`` an idempotency key for the world outside the database."""
        return self._claim.id

    @property
    def task(self) -> str:
        """The name of the task."""
        return self._claim.task

    @property
    def queue(self) -> str:
        """The queue that the job came through."""
        return self._claim.queue

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1. A run that ended in a snooze, a shutdown or a dead worker had none."""
        return self._claim.attempt

    @property
    def max_attempts(self) -> int:
        """How many attempts the job has in all."""
        return self._claim.max_attempts

    @property
    def is_last_attempt(self) -> bool:
        """Whether a failure of this attempt is final."""
        return self._claim.attempt >= self._claim.max_attempts

    @property
    def fence(self) -> int:
        """The number of this claim: grows with every claim of the job, charged as an attempt or not."""
        return self._claim.fence

    @property
    def worker_id(self) -> UUID:
        """The worker process that runs the job."""
        return self._claim.worker_id

    @property
    def run_at(self) -> datetime:
        """The time before which this attempt was not to start."""
        return self._claim.run_at

    @property
    def created_at(self) -> datetime:
        """When the job was enqueued."""
        return self._claim.created_at

    @property
    def cancelled(self) -> bool:
        """Whether the handler should end soon: a cancel, a shutdown whose grace is over, a timeout, or a lost lease.

        An ``async`` handler is cancelled by exception; a handler in a thread must look here. What a thread returns
        after it was told to stop is thrown away: it may have ended early.
        """
        return self._claim.stop is not None

    def progress(self, done: int, total: int | None = None, message: str | None = None) -> None:
        """Say how far the job is. Cheap and without I/O: the worker writes the latest word about once a second."""
        self._claim.progress = payload.encode_progress(done, total, message)
