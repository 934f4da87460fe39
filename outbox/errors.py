"""Every exception that the library raises on purpose.

OutboxError
├── DeclarationError      a task or a setting is declared wrongly; raised at import or start, never at run time
├── PayloadInvalid        arguments that do not fit the task, or that cannot be stored; names the path
├── EnqueueFailed         the jobs of this transaction could not be written; the transaction must be rolled back
│   └── QueueFull         because so many jobs wait in their queue already
├── JobExists             the key of a job that was to be rejected then is taken; the transaction is as good as before
├── JobNotFound           no job has this id
├── IllegalTransition     the job is in a state from which the asked move is not legal
├── BatchNotFound         no batch has this id
├── ScheduleNotFound      no schedule has this name
├── KeyNotFound           no key to the HTTP API has this id or prefix
├── KeyTaken              the job cannot be requeued, for another one has its key
├── SchemaMismatch        the database's ``outbox`` schema is not one this release can work with
└── AttemptError          how an attempt can fail without the handler's own exception
    ├── AttemptTimeout    the handler ran longer than its time limit
    ├── ChildDied         the process that ran the handler ended under it
    ├── UnexpectedCancel  the handler raised CancelledError although nobody had cancelled it
    ├── LeaseLost         the job was no longer this worker's when its handler's transaction was to commit
    ├── CommitRefused     the handler committed the session that the worker commits
    └── ResultNotStored   the handler succeeded, its return value could not be stored

Raised in a handler, and no error:

CancelledError
└── SoftTimeout           the handler's soft time limit is over: clean up and end
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID


class OutboxError(Exception):
    """The base of all errors of this library."""


class DeclarationError(OutboxError):
    """A task, a retry policy or a setting is declared wrongly. The message says what to write instead."""


class PayloadInvalid(OutboxError):
    """A value cannot be a job's arguments.

    :ivar path: where the offending value is, as in ``$.lines[3].sku``; ``$`` is the arguments as a whole.
    :ivar reason: what is wrong with it, in plain words.
    :ivar rule: the same without any word that may be a user's, and so repeat the value.
    """

    def __init__(self, task: str, path: str, reason: str, rule: str | None = None) -> None:
        super().__init__(f"arguments of task {task!r}: {path}: {reason}")
        self.task = task
        self.path = path
        self.reason = reason
        self.rule = rule or reason


class EnqueueFailed(OutboxError):
    """Jobs enqueued in this transaction could not be written, so it must not commit: roll it back."""


class QueueFull(EnqueueFailed):
    """As many jobs wait in the queue as its ceiling allows. Roll back, and try again later.

    :ivar queue: its name.
    """

    def __init__(self, queue: str) -> None:
        super().__init__(f"queue {queue!r} is full: roll back, and try again later")
        self.queue = queue


class JobExists(OutboxError):
    """The key is taken, and the job was to be rejected then. Nothing else of the transaction is touched by it.

    :ivar existing: the id of the job that has the key.
    :ivar rejected: the handles of all jobs of the flush that were rejected, each with the id of the one that exists.
    """

    def __init__(self, rejected: Sequence[Any]) -> None:
        first = rejected[0]
        self.rejected = tuple(rejected)
        self.existing: UUID = first.id
        super().__init__(f"task {first.task!r} has a job with the key {first.options.key!r} already: {first.id}")


class JobNotFound(OutboxError):
    """No job has this id: it never existed, was rolled back, or retention has dropped it."""

    def __init__(self, id: UUID) -> None:
        super().__init__(f"no job {id}")
        self.id = id


class IllegalTransition(OutboxError):
    """The job's state does not allow this move.

    :ivar state: the state that the job is in.
    :ivar allowed: the states from which the move is legal.
    """

    def __init__(self, id: UUID, verb: str, state: str, allowed: Iterable[str]) -> None:
        self.id = id
        self.verb = verb
        self.state = str(state)
        self.allowed = tuple(str(each) for each in allowed)
        super().__init__(f"cannot {verb} job {id}: it is {self.state}, which must be one of {', '.join(self.allowed)}")


class BatchNotFound(OutboxError):
    """No batch has this id: it never existed, was rolled back, or retention has dropped it."""

    def __init__(self, id: UUID) -> None:
        super().__init__(f"no batch {id}")
        self.id = id


class ScheduleNotFound(OutboxError):
    """No schedule has this name: it never existed, or was deleted."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no schedule {name!r}")
        self.name = name


class KeyNotFound(OutboxError):
    """No key to the HTTP API has this id or prefix."""

    def __init__(self, key: str) -> None:
        super().__init__(f"no key {key!r}")
        self.key = key


class KeyTaken(OutboxError):
    """The job cannot be requeued: a live job of the same task has its key.

    :ivar existing: the id of that one.
    """

    def __init__(self, id: UUID, existing: UUID | None) -> None:
        super().__init__(f"cannot requeue job {id}: job {existing} has its key; wait for that, or cancel it")
        self.id = id
        self.existing = existing


class SchemaMismatch(OutboxError):
    """The database holds another version of the ``outbox`` schema than this release needs; migrate, then start."""


class AttemptError(OutboxError):
    """An attempt failed for a reason that is not the handler's own exception."""


class AttemptTimeout(AttemptError):
    """The handler ran longer than the time limit of its task."""


class ChildDied(AttemptError):
    """The child process that ran the handler ended under it, or never began; the message says by which signal."""


class UnexpectedCancel(AttemptError):
    """The handler raised ``CancelledError`` although neither a person nor a shutdown had cancelled it."""


class LeaseLost(AttemptError):
    """The claim is not good any more: somebody else has the job. Nothing that its handler wrote was committed."""


class CommitRefused(AttemptError):
    """The handler committed the session that it was given. The worker does that, together with the job's state."""


class ResultNotStored(AttemptError):
    """The handler succeeded, but its return value could not be stored; the job counts as succeeded."""


class SoftTimeout(asyncio.CancelledError):
    """Raised in a handler whose soft time limit is over: clean up, and end before ``timeout`` ends you.

    No ``Exception``, so that ``except Exception`` around one item of many does not swallow it.
    """
