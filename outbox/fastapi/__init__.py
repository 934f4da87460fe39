"""Everything for FastAPI: sessions, ``OutboxTasks``, the HTTP API, and errors as problem+json.

The only package that knows FastAPI; it needs the extra ``outbox[fastapi]`` and is imported by name.
"""

from outbox.fastapi.access import Access, Principal, api_keys, local_only
from outbox.fastapi.batches import BatchReference, BatchView, accepted_batch
from outbox.fastapi.idempotency import idempotent_route
from outbox.fastapi.problems import Problem, problem, problem_handlers, problem_responses
from outbox.fastapi.rate import Rate
from outbox.fastapi.router import outbox_router
from outbox.fastapi.unit_of_work import TaskAdder, outbox_tasks, session_dependency
from outbox.fastapi.views import JobPage, JobReference, JobView, Links, accepted

__all__ = [
    "Access",
    "BatchReference",
    "BatchView",
    "JobPage",
    "JobReference",
    "JobView",
    "Links",
    "Principal",
    "Problem",
    "Rate",
    "TaskAdder",
    "accepted",
    "accepted_batch",
    "api_keys",
    "idempotent_route",
    "local_only",
    "outbox_router",
    "outbox_tasks",
    "problem",
    "problem_handlers",
    "problem_responses",
    "session_dependency",
]
