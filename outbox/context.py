"""What one attempt knows of its job: ``Claim``, which the worker holds, and ``JobContext``, its face to the handler."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from outbox import payload, sql
from outbox.errors import LeaseLost

_RESULTS = text(
    """
    select (select result::text from outbox.finished_job job where job.id = after_id) as result
    from outbox.dependency where job_id = :id order by position
    """
)
_KEEP_HERE = text(sql.KEEP_HERE)


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
    ``waited`` is how many seconds it was due before it was claimed.
    ``secrets`` are those among its arguments, once they are made, and are not to be said again.
    ``progress`` and ``kept`` are what the handler says while it runs, ``stop`` what the worker says. Once it has
    ``begun`` its asyncio task may be cancelled; once it is ``settling`` in the handler's own transaction nothing stops
    it any more: its fence decides.
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
    waited: float = 0.0
    is_suspect: bool = False
    version: int = 1
    group: str | None = None
    limited: bool = False
    followed: bool = False
    checkpoint: str | None = None
    headers: str | None = None
    progress: str | None = None
    kept: str | None = None
    told: tuple[str | None, str | None] = (None, None)
    secrets: Sequence[Any] = ()
    stop: Stop | None = None
    begun: bool = False
    settling: bool = False

    @property
    def lets_others_run(self) -> bool:
        """Whether jobs may be waiting for this one to end."""
        return self.group is not None or self.limited or self.followed


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
        after it was told to stop is thrown away: it may have ended early. A handler in a child process is killed.
        """
        return self._claim.stop is not None

    @property
    def checkpoint(self) -> Any:
        """What this attempt, or the last one before it that kept anything, has kept; None if none has."""
        latest = self._claim.kept or self._claim.checkpoint
        return None if latest is None else payload.read(latest)

    def keep(self, value: Any) -> None:
        """Keep a small JSON value for the next attempt, should there be one: how far this one is.

        Cheap and without I/O: the latest value is written about once a second, and when the attempt ends. After a crash
        the next attempt may so find one a second old, and must bear to do that second's work again. Where it must not,
        use ``keep_in``.

        :raises PayloadInvalid: if it cannot be stored; 256 KB at most.
        """
        self._claim.kept = payload.encode_checkpoint(self._claim.task, value)

    async def keep_in(self, session: AsyncSession | AsyncConnection, value: Any) -> None:
        """Keep a small JSON value with the session's transaction: it commits together with the work it speaks of.

        Call it last before the commit, for the job's row is locked from here on.

        :raises LeaseLost: if the job is somebody else's by now: roll back.
        :raises PayloadInvalid: if it cannot be stored; 256 KB at most.
        """
        encoded = payload.encode_checkpoint(self._claim.task, value)
        values = {"id": self._claim.id, "fence": self._claim.fence, "checkpoint": encoded}
        if not (await session.execute(_KEEP_HERE, values)).scalar():
            raise LeaseLost("the job is no longer this worker's; roll back")

    async def results(self, session: AsyncSession | AsyncConnection) -> list[Any]:
        """The results of the jobs that this one comes after, in the order in which ``after=`` names them.

        None for one that has not succeeded, and for one that retention has dropped.
        """
        return [payload.read(row.result) for row in await session.execute(_RESULTS, {"id": self._claim.id})]

    def progress(self, done: int, total: int | None = None, message: str | None = None) -> None:
        """Say how far the job is. Cheap and without I/O: the worker writes the latest word about once a second."""
        self._claim.progress = payload.encode_progress(done, total, message)
