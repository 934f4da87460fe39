"""Everything for FastAPI: sessions, ``OutboxTasks``, the status router, and errors as problem+json.

The only package that knows FastAPI; it needs the extra ``outbox[fastapi]`` and is imported by name.
"""

from outbox.fastapi.batches import BatchReference, BatchView, accepted_batch, batches_router
from outbox.fastapi.idempotency import idempotent_route
from outbox.fastapi.problems import Problem, problem, problem_handlers, problem_responses
from outbox.fastapi.router import status_router
from outbox.fastapi.schedules import schedules_router
from outbox.fastapi.unit_of_work import TaskAdder, outbox_tasks, session_dependency
from outbox.fastapi.views import JobPage, JobReference, JobView, Links, accepted

__all__ = [
    "BatchReference",
    "BatchView",
    "JobPage",
    "JobReference",
    "JobView",
    "Links",
    "Problem",
    "TaskAdder",
    "accepted",
    "accepted_batch",
    "batches_router",
    "idempotent_route",
    "outbox_tasks",
    "problem",
    "problem_handlers",
    "problem_responses",
    "schedules_router",
    "session_dependency",
    "status_router",
]
