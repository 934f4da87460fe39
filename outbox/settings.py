"""What a worker can be told: one frozen dataclass, each field with its meaning, its default and its limits."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from outbox.errors import DeclarationError


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """How one worker process behaves. Times are in seconds.

    :param queues: queue name → slots: how many of its jobs run at once in this process. 1 to 10,000 each.
    :param lease: how long a claim stays good without a heartbeat; a dead worker's jobs start again elsewhere after
        this time. Heartbeats go out every third of it. 1 to 3,600.
    :param grace: how long a stopping worker waits for running jobs before it cancels them. 0 to 86,400.
    :param cancel_grace: how long it then waits for them to take the cancellation before it hands them back and
        leaves all the same. 0 to 600.
    :param poll_min: the shortest pause between two claims that found nothing to wait for. 0.001 to ``poll_max``.
    :param poll_max: the longest; an idle worker asks this often, and half as often while hints tell it of new jobs.
        Up to 60.
    :param prefetch: jobs at most that one queue holds claimed beyond its free slots. How many it really holds follows
        from how fast they run: slow jobs are never hoarded. 0 to 10,000.
    :param max_jobs_per_child: jobs of tasks with ``isolation="process"`` that a child process runs before a fresh one
        takes its place, so that what their libraries leak is bounded. 1 to 1,000,000.
    :param wake_up: whether to listen for hints that new jobs are there. Polling finds them without, a little later.
        Through a connection pooler nobody can listen, and the worker only polls.
    :param retention_days: for how many days finished jobs are kept. 1 to 3,650.
    :param statement_timeout: how long any statement of the worker may take before its connection is given up.
        1 to 600; a heartbeat waits a sixth of the lease at most.
    """

    queues: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({"default": 10}))
    lease: float = 30.0
    grace: float = 20.0
    cancel_grace: float = 2.0
    poll_min: float = 0.01
    poll_max: float = 0.5
    prefetch: int = 1000
    max_jobs_per_child: int = 100
    wake_up: bool = True
    retention_days: int = 14
    statement_timeout: float = 10.0

    def __post_init__(self) -> None:
        if not self.queues:
            raise DeclarationError("queues: is empty; name at least one, as in {'default': 10}")
        for name, slots in self.queues.items():
            if not 1 <= slots <= 10_000:
                raise DeclarationError(f"queues[{name!r}]: {slots} slots; must be 1 to 10,000")
            if not 1 <= len(name) <= 200:
                raise DeclarationError(f"queues[{name!r}]: a queue's name must be 1 to 200 characters")
        rules = (
            ("lease", 1, 3600),
            ("grace", 0, 86_400),
            ("cancel_grace", 0, 600),
            ("poll_min", 0.001, self.poll_max),
            ("poll_max", 0.001, 60),
            ("prefetch", 0, 10_000),
            ("max_jobs_per_child", 1, 1_000_000),
            ("retention_days", 1, 3650),
            ("statement_timeout", 1, 600),
        )
        for name, low, high in rules:
            value = getattr(self, name)
            if not low <= value <= high:
                raise DeclarationError(f"{name}: {value}; must be {low:g} to {high:g}")

    @property
    def beat(self) -> float:
        """Seconds between two heartbeats; a beat and its longest wait fit twice into the lease."""
        return self.lease / 3
