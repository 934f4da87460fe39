"""A job on its way in: what the caller wants (``Options``) and the handle on it (``NewJob``). No I/O."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, get_args
from uuid import UUID

from outbox import trace
from outbox.backoff import MAX_ATTEMPTS, seconds

if sys.version_info >= (3, 14):
    from uuid import uuid7
else:
    from uuid_utils.compat import uuid7

MAX_NAME = 200
PRIORITIES = (3, 2, 1, 0)
"""Highest first: the order in which a claim looks."""

OnConflict = Literal["keep", "replace", "reject"]
"""What becomes of a job whose key is taken: see ``Options``."""


def is_name(text: str) -> bool:
    """Whether a task, a queue or a tag may be called so: no NUL, no surrogate, nothing that spoils a log."""
    return 1 <= len(text) <= MAX_NAME and text.isprintable()


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How one job is run, where that differs from what its task says.

    :param queue: another queue than the task's.
    :param priority: 3 is claimed first, 0 last.
    :param delay: seconds or a timedelta from now, by the database's clock. Not together with ``run_at``.
    :param run_at: an aware datetime before which the job does not run.
    :param max_attempts: 1 to 32,767.
    :param tags: strings to find the job by.
    :param group: jobs of a group run one at a time, in the order in which they were enqueued.
    :param passable: whether, while this job waits for its time (a delay, a retry, a snooze), those behind it in its
        group may pass. Otherwise they wait for it.
    :param limit_key: whose turn it takes where a limit holds for the task or the queue: a tenant's, say.
    :param tenant: whose job it is: keys of that tenant's see it over HTTP, and those of other tenants do not.
    :param key: of the live jobs of a task only one has this key, whoever enqueues it.
    :param unique_for: seconds or a timedelta for which the key is taken, counted from the enqueue, even when the job
        has ended by then.
    :param on_conflict: what becomes of this job when its key is taken: ``keep`` the one that is there, whose id the
        handle then has; ``replace`` its arguments and options by these while it has not started, else keep it; or
        ``reject`` this one, with ``JobExists``, which leaves the transaction as good as it was.
    :param after: jobs that must have succeeded before this one runs, enqueued in the same transaction; 1,000 at most.
        If one of them fails or is cancelled, this one is cancelled.
    :param even_if_failed: whether it runs all the same then: as soon as all of them have ended.
    """

    queue: str = "default"
    priority: int = 1
    delay: float | timedelta = 0.0
    run_at: datetime | None = None
    max_attempts: int | None = None
    tags: Sequence[str] = field(default=())
    group: str | None = None
    passable: bool = False
    limit_key: str = ""
    tenant: str | None = None
    key: str | None = None
    unique_for: float | timedelta | None = None
    on_conflict: OnConflict = "keep"
    after: Sequence["NewJob"] = field(default=())
    even_if_failed: bool = False

    def __post_init__(self) -> None:
        if not is_name(self.queue):
            raise ValueError(f"queue: must be 1 to {MAX_NAME} printable characters")
        if self.priority not in PRIORITIES:
            raise ValueError(f"priority: {self.priority!r}; must be 0 to 3, 3 is claimed first")
        if self.max_attempts is not None and not 1 <= self.max_attempts <= MAX_ATTEMPTS:
            raise ValueError(f"max_attempts: {self.max_attempts}; must be 1 to {MAX_ATTEMPTS}")
        self._check_run_at()
        if isinstance(self.tags, str) or not all(map(is_name, self.tags)):
            raise ValueError(f"tags: must be a sequence of strings of 1 to {MAX_NAME} printable characters")
        seconds(self.delay)
        self._check_key()
        self._check_group()
        self._check_after()
        if self.limit_key and not is_name(self.limit_key):
            raise ValueError(f"limit_key: must be 1 to {MAX_NAME} printable characters")
        if self.tenant is not None and not is_name(self.tenant):
            raise ValueError(f"tenant: must be 1 to {MAX_NAME} printable characters")

    def _check_run_at(self) -> None:
        if self.run_at is None:
            return
        if self.run_at.tzinfo is None:
            raise TypeError(f"run_at: {self.run_at} has no time zone; pass an aware datetime")
        if self.delay:
            raise ValueError("give delay or run_at, not both")
        try:
            self.run_at.astimezone(UTC)
        except OverflowError:  # the row could be written, and never be read again
            raise ValueError(f"run_at: {self.run_at} is not in the years 1 to 9999 in UTC") from None

    def _check_group(self) -> None:
        if self.group is None and self.passable:
            raise ValueError("passable says what a job does in its group: give group= too")
        if self.group is not None and not is_name(self.group):
            raise ValueError(f"group: must be 1 to {MAX_NAME} printable characters")
        if self.group is not None and self.on_conflict == "replace":
            raise ValueError("replace would hold up the group of the job that is there: not with group")

    def _check_after(self) -> None:
        if self.even_if_failed and not self.after:
            raise ValueError("even_if_failed says what becomes of a job after others: give after= too")
        if self.after and (self.key is not None or any(each.options.key is not None for each in self.after)):
            raise ValueError("a job with a key may turn out to be another one: not with after")
        if len(self.after) > 1000:
            raise ValueError(f"after: {len(self.after)} jobs, limit 1,000; make them a batch with a callback")

    def _check_key(self) -> None:
        if self.on_conflict not in get_args(OnConflict):
            raise ValueError(f"on_conflict: {self.on_conflict!r}; must be one of {', '.join(get_args(OnConflict))}")
        if self.key is None:
            if self.unique_for is not None or self.on_conflict != "keep":
                raise ValueError("unique_for and on_conflict say what a key does: give key= too")
            return
        if not is_name(self.key):
            raise ValueError(f"key: must be 1 to {MAX_NAME} printable characters")
        if self.unique_for is not None:
            seconds(self.unique_for)
            if self.on_conflict == "replace":
                raise ValueError("replace needs a job that waits, and within unique_for it may have ended: not both")


class BatchRow:
    """The batch that new jobs belong to, as it is written with them.

    :ivar callbacks: what is enqueued at its end, as JSON.
    """

    def __init__(self, name: str, callbacks: str, tenant: str | None = None) -> None:
        self.id: UUID = uuid7()
        self.name = name
        self.tenant = tenant
        self.callbacks = callbacks


class NewJob:
    """A job to be written with the caller's transaction. Its ``id`` is known now; its row exists after the flush.

    With a key the id is final only after the flush: if the key was taken it is then that of the job that has it.

    :ivar is_new: whether the job was written, and not found to be there already; None before the flush.
    :ivar headers: what it carries along from here, as JSON text: see ``trace``.
    :ivar batch: the batch it belongs to.
    :ivar followed: whether other jobs come after it.
    :ivar written_in: the transaction in which it was written.
    """

    id: UUID
    task: str
    queue: str
    is_new: bool | None = None
    batch: BatchRow | None = None
    followed = False
    written_in: object = None
    _write: Callable[[UUID], str] | None = None

    def __init__(self, task: str, payload: str | Callable[[UUID], str], options: Options, *, version: int = 1) -> None:
        """
        :param payload: the arguments as JSON text, or what writes it for a job of this id: secrets are sealed for one.
        """
        vars(self)["id"] = uuid7()  # not by name: the mapper need not take note of it
        self.task = task
        self.queue = options.queue
        if isinstance(payload, str):
            self.payload = payload
        else:
            self._write = payload
            self.payload = payload(self.id)
        self.options = options
        self.version = version
        self.headers = trace.headers()
        for each in options.after:
            each.followed = True

    def takes_on(self, other: "NewJob") -> None:
        """Be the job that ``other`` is, under this id."""
        self._write = other._write
        self.payload = other.payload_for(self.id)
        self.options, self.queue, self.version = other.options, other.queue, other.version
        self.headers = other.headers

    def payload_for(self, id: UUID) -> str:
        """The arguments as the row with this id holds them."""
        return self.payload if self._write is None or id == self.id else self._write(id)

    @property
    def is_sealed(self) -> bool:
        """Whether there are secrets among the arguments, which open for this id only."""
        return self._write is not None

    def __repr__(self) -> str:
        return f"<NewJob {self.task} {self.id} queue={self.queue}>"


def columns(jobs: Sequence[NewJob]) -> dict[str, list[Any]]:
    """The values of the jobs' rows, column by column, as ``sql.ENQUEUE`` takes them.

    A column in which no job says anything is empty: nothing is sent, nothing is read, and the default stands.
    """
    options = [job.options for job in jobs]
    return {
        "id": [str(job.id) for job in jobs],
        "task": [job.task for job in jobs],
        "queue": [job.queue for job in jobs],
        "payload": [job.payload for job in jobs],
        "priority": [each.priority for each in options],
        "run_at": _said([each.run_at for each in options]),
        "delay": _said([seconds(each.delay) if each.delay else None for each in options]),
        "max_attempts": _said([each.max_attempts for each in options]),
        "tags": _said([json.dumps(list(each.tags)) if each.tags else None for each in options]),
        "key": _said([each.key for each in options]),
        "group": _said([each.group for each in options]),
        "passable": _said([each.passable or None for each in options]),
        "limit_key": _said([each.limit_key or None for each in options]),
        "tenant": _said([each.tenant for each in options]),
        "version": _said([None if job.version == 1 else job.version for job in jobs]),
        "batch": _said([job.batch and str(job.batch.id) for job in jobs]),
        "followed": _said([job.followed or None for job in jobs]),
        "headers": _said([job.headers for job in jobs]),
        "follows": _said([bool(each.after) or None for each in options]),
    }


def _said(values: list[Any]) -> list[Any]:
    return values if values.count(None) < len(values) else []
