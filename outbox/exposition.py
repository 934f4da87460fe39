"""Figures as Prometheus reads them. The only module that knows ``prometheus_client``; it needs ``outbox[prometheus]``.

What the tables tell is told by the service, and what a worker does by itself: see docs/metrics.md.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from outbox.errors import DeclarationError
from outbox.figures import QueueFigures, WorkerFigures
from outbox.meter import Meter
from outbox.tally import BOUNDS, Counts, Key

try:
    from prometheus_client import REGISTRY, generate_latest
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
    from prometheus_client.registry import Collector
except ImportError as exc:
    raise DeclarationError('metrics need the package prometheus-client: pip install "outbox[prometheus]"') from exc

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

BUCKETS = range(4, 43, 2)
"""Those of ``tally.BOUNDS`` that are told, up to which each counts all below: 4 ms, and by two up to half an hour."""

_MIDDLES = (BOUNDS[0] / 2, *(bound / 2**0.25 for bound in BOUNDS[1:]), BOUNDS[-1])
"""What a time in each bucket of a tally is taken for in a sum, in seconds; a fifth beside the truth at most."""


@dataclass(frozen=True, slots=True)
class ServiceCollector:
    """What the tables tell.

    :ivar queues: name → figures.
    :ivar workers: id → figures.
    """

    queues: Mapping[str, QueueFigures]
    workers: Mapping[str, WorkerFigures]

    def collect(self) -> Iterator[Metric]:
        """The figures by name."""
        yield from self._of_queues()
        yield from self._of_workers()

    def _of_queues(self) -> Iterator[Metric]:
        jobs = GaugeMetricFamily(
            "outbox_queue_jobs", "Jobs of a queue; 10,000 ready or scheduled may be more.", labels=("queue", "state")
        )
        oldest = GaugeMetricFamily(
            "outbox_queue_oldest_age_seconds", "How long the oldest job that is due has waited.", labels=("queue",)
        )
        paused = GaugeMetricFamily("outbox_queue_paused", "1 while nobody claims its jobs.", labels=("queue",))
        for queue, figures in self.queues.items():
            jobs.add_metric((queue, "ready"), figures.ready)
            jobs.add_metric((queue, "scheduled"), figures.scheduled)
            jobs.add_metric((queue, "running"), figures.running)
            oldest.add_metric((queue,), figures.oldest)
            paused.add_metric((queue,), figures.paused)
        yield from (jobs, oldest, paused)

    def _of_workers(self) -> Iterator[Metric]:
        slots = GaugeMetricFamily("outbox_worker_slots", "Jobs that a worker runs at once.", labels=("worker",))
        busy = GaugeMetricFamily("outbox_worker_busy", "Slots of a worker that are taken.", labels=("worker",))
        seen_at = GaugeMetricFamily(
            "outbox_worker_last_heartbeat_timestamp_seconds", "When it was last heard of.", labels=("worker",)
        )
        for worker, figures in self.workers.items():
            slots.add_metric((worker,), figures.slots)
            busy.add_metric((worker,), figures.busy)
            seen_at.add_metric((worker,), figures.seen_at.timestamp())
        yield from (slots, busy, seen_at)


@dataclass(frozen=True, slots=True)
class WorkerCollector:
    """What a worker has done, and what the handlers' own metrics in the registry of ``prometheus_client`` say."""

    meter: Meter

    def collect(self) -> Iterator[Metric]:
        """The figures by name."""
        total = self.meter.total()
        yield _attempts(total)
        yield from _times(total)
        yield CounterMetricFamily(
            "outbox_leases_lost", "Claims that others have taken from this worker.", self.meter.leases_lost
        )
        yield from REGISTRY.collect()


def encode(figures: Collector) -> bytes:
    """The figures in the text form that everything reads which reads any: see ``CONTENT_TYPE``."""
    return generate_latest(figures)


def _attempts(total: Mapping[Key, Counts]) -> Metric:
    attempts = CounterMetricFamily(
        "outbox_job_attempts", "Attempts that have ended, by how they did.", labels=("queue", "task", "outcome")
    )
    for labels, counts in total.items():
        attempts.add_metric(labels, counts.count)
    return attempts


def _times(total: Mapping[Key, Counts]) -> Iterator[Metric]:
    waits = HistogramMetricFamily(
        "outbox_job_wait_seconds", "From when a job was due until it was claimed.", labels=("queue", "task")
    )
    runs = HistogramMetricFamily("outbox_job_duration_seconds", "How long attempts ran.", labels=("queue", "task"))
    by_task: dict[tuple[str, str], Counts] = {}
    for (queue, task, _), counts in total.items():
        if counts.count:
            by_task[queue, task] = by_task.get((queue, task), Counts()) + counts
    for labels, counts in by_task.items():
        waits.add_metric(labels, _cumulative(counts.waits), _sum(counts.waits))
        runs.add_metric(labels, _cumulative(counts.runs), _sum(counts.runs))
    yield from (waits, runs)


def _cumulative(counts: Sequence[int]) -> list[tuple[str, float]]:
    so_far = list(accumulate(counts))
    return [*((str(BOUNDS[n]), float(so_far[n])) for n in BUCKETS), ("+Inf", float(so_far[-1]))]


def _sum(counts: Sequence[int]) -> float:
    return sum(count * middle for count, middle in zip(counts, _MIDDLES, strict=True))
