"""The noun: a job, its states, and the moves between them.

               enqueue            claim                 settle
        (new) ────────► pending ─────────► running ─────────────────► succeeded
                        ▲ ▲  │             │  │  ▲ │
                        │ │  │ cancel      │  │  └─┘ renew
                        │ │  └──► cancelled│  └── settle, or rescue of a poison job ──► failed | cancelled
                        │ └─ requeue, by a person, from cancelled or failed
                        └──────────────────┘ settle as retry · snooze · release, or rescue

There is one waiting state. Whether a waiting job is scheduled for later, between two attempts, or ready is told by its
``run_at`` and ``attempt``, so no process has to promote jobs from one state to the next.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from outbox import trace


class State(StrEnum):
    """Where a job is in its life, in life order."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})

TRANSITIONS: Mapping[str, Mapping[State, frozenset[State]]] = {
    "claim": {State.PENDING: frozenset({State.RUNNING})},
    "renew": {State.RUNNING: frozenset({State.RUNNING})},
    "finish": {State.RUNNING: TERMINAL},
    "postpone": {State.RUNNING: frozenset({State.PENDING})},
    "rescue": {State.RUNNING: frozenset({State.PENDING, State.FAILED, State.CANCELLED})},
    "cancel": {State.PENDING: frozenset({State.CANCELLED}), State.RUNNING: frozenset({State.RUNNING})},
    "requeue": {State.FAILED: frozenset({State.PENDING}), State.CANCELLED: frozenset({State.PENDING})},
}
"""Every verb, the states it may start from, and where it may lead; a test walks all pairs against the SQL."""

MAX_LOST = 3
"""A job whose worker died this many times while running it is poison, and fails (see ``sql.RESCUE``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job as it was when it was read; reading it again is the way to news.

    Times are aware datetimes by the database's clock. ``errors`` holds the last 20, oldest first.
    """

    id: UUID
    task: str
    queue: str
    state: State
    priority: int
    run_at: datetime
    payload: dict[str, Any]
    attempt: int
    max_attempts: int | None
    lost: int
    fence: int
    worker_id: UUID | None
    lease_until: datetime | None
    created_at: datetime
    started_at: datetime | None
    cancel_requested_at: datetime | None
    finished_at: datetime | None
    progress: dict[str, Any] | None
    result: Any
    errors: list[dict[str, Any]]
    tags: list[str]
    key: str | None
    version: int
    checkpoint: Any
    group_key: str | None
    passable: bool
    limited: bool
    limit_key: str
    tenant: str | None
    batch_id: UUID | None
    followed: bool
    blocked: str | None
    headers: dict[str, Any] | None

    @property
    def done(self) -> bool:
        """Whether the job has reached a state in which it stays unless a person requeues it."""
        return self.state in TERMINAL

    @property
    def trace_id(self) -> str | None:
        """The trace in which it was enqueued, 32 hexadecimal digits; None where nobody traced."""
        return trace.trace_id(self.headers)
