"""A durable job queue in Postgres: jobs are written in the same transaction as business data.

    outbox = Outbox()

    @outbox.task(queue="mail", retry=Retry(max_attempts=8), timeout=30)
    async def send_receipt(order_id: UUID, email: str) -> None: ...

    send_receipt.enqueue(session, order.id, email=order.email)   # runs if, and only if, the session commits

A worker process (``outbox worker module:outbox``) runs what has been committed.
"""

from outbox.backoff import Retry
from outbox.context import JobContext
from outbox.errors import OutboxError
from outbox.injection import INJECTED, Depends
from outbox.job import Job, State
from outbox.limit import Limit
from outbox.newjob import NewJob
from outbox.outcome import Cancel, Snooze
from outbox.registry import Outbox
from outbox.settings import WorkerSettings
from outbox.task import Task

__all__ = [
    "INJECTED",
    "Cancel",
    "Depends",
    "Job",
    "JobContext",
    "Limit",
    "NewJob",
    "Outbox",
    "OutboxError",
    "Retry",
    "Snooze",
    "State",
    "Task",
    "WorkerSettings",
]
