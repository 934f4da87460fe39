"""A worker's counts add up, under a bounded number of labels, and Prometheus reads from them what was counted."""

import pytest

from outbox import exposition
from outbox.exposition import WorkerCollector
from outbox.job import State
from outbox.meter import MOST_QUEUES, OUTCOMES, Meter
from outbox.outcome import Error, Finished, Outcome, Postponed
from outbox.tally import BOUNDS, Tally
from tests.scraping import Samples, scraped, series

DONE = Finished(State.SUCCEEDED)
RETRIED = Postponed(1, Error("ValueError", "no"), charged=True)


def samples(meter: Meter) -> Samples:
    return scraped(exposition.encode(WorkerCollector(meter)).decode())


def value(meter: Meter, name: str, **labels: str) -> float:
    return samples(meter)[series(name, **labels)]


def counted(*notes: tuple[str, str, Outcome, float, float]) -> Meter:
    tally = Tally()
    meter = Meter(tally, {"send": "mail", "bill": "mail"}, ["mail", "default"])
    for note in notes:
        tally.note(*note)
    meter.take()
    return meter


def test_what_is_taken_is_given_on_and_remembered() -> None:
    tally = Tally()
    meter = Meter(tally, {"send": "mail"}, ["mail"])
    for count in (2, 3):
        for _ in range(count):
            tally.note("mail", "send", DONE, 0, 0)
        assert meter.take()["mail", "send", "succeeded"].count == count
        assert not meter.take()
    assert meter.total()["mail", "send", "succeeded"].count == 5


def test_who_reads_in_another_thread_sees_all_of_a_take_or_nothing() -> None:
    tally = Tally()
    meter = Meter(tally, {"send": "mail"}, ["mail"])
    tally.note("mail", "send", DONE, 0, 0)
    meter.take()
    before = meter.total()
    tally.note("mail", "send", DONE, 0, 0)
    meter.take()
    assert before["mail", "send", "succeeded"].count == 1  # the reader's own, however slowly it reads
    assert meter.total()["mail", "send", "succeeded"].count == 2


def test_attempts_are_told_by_queue_task_and_outcome() -> None:
    meter = counted(("mail", "send", DONE, 0, 0), ("mail", "send", DONE, 0, 0), ("mail", "send", RETRIED, 0, 0))
    assert value(meter, "outbox_job_attempts_total", queue="mail", task="send", outcome="succeeded") == 2
    assert value(meter, "outbox_job_attempts_total", queue="mail", task="send", outcome="retried") == 1


@pytest.mark.parametrize("seconds", [0.0, 0.004, 0.0041, 0.5, 1.0, 30.0, 2097.152, 2098.0, 1e6])
def test_a_time_is_in_every_bucket_from_its_own_on(seconds: float) -> None:
    meter = counted(("mail", "send", DONE, seconds, 2 * seconds))
    for name, took in (("outbox_job_wait_seconds", seconds), ("outbox_job_duration_seconds", 2 * seconds)):
        assert value(meter, f"{name}_count", queue="mail", task="send") == 1
        assert value(meter, f"{name}_bucket", queue="mail", task="send", le="+Inf") == 1
        for n in exposition.BUCKETS:
            bucket = value(meter, f"{name}_bucket", queue="mail", task="send", le=str(BOUNDS[n]))
            assert bucket == (took <= BOUNDS[n]), BOUNDS[n]


@pytest.mark.parametrize("seconds", [0.0011, 0.01, 0.5, 1.0, 29.0, 3600.0, 8000.0])
def test_a_sum_is_at_most_a_fifth_beside_the_truth(seconds: float) -> None:
    meter = counted(*[("mail", "send", DONE, seconds, seconds)] * 10)
    for name in ("outbox_job_wait_seconds", "outbox_job_duration_seconds"):
        assert value(meter, f"{name}_sum", queue="mail", task="send") == pytest.approx(10 * seconds, rel=0.2)


def test_what_may_come_is_told_from_the_start() -> None:
    meter = Meter(Tally(), {"send": "mail", "bill": "elsewhere"}, ["mail", "default"])
    told = samples(meter)
    assert {(dict(labels).get("task"), value) for (_, labels), value in told.items()} == {("send", 0.0), (None, 0.0)}
    assert len(told) == len(OUTCOMES) + 1  # and no times of what never ran


def test_times_are_told_of_all_outcomes_together() -> None:
    meter = counted(("mail", "send", DONE, 1, 1), ("mail", "send", RETRIED, 1, 1), ("mail", "bill", DONE, 1, 1))
    assert value(meter, "outbox_job_wait_seconds_count", queue="mail", task="send") == 2
    assert value(meter, "outbox_job_duration_seconds_count", queue="mail", task="bill") == 1


def test_however_many_names_come_there_are_no_more_series() -> None:
    tally = Tally()
    meter = Meter(tally, {"send": "mail"}, ["mail"])
    seen = []
    for n in range(3):
        for names in (("mail", "send"), ("mail", "never"), ("never", "send"), ("never", "never")):
            tally.note(*names, DONE, 0, 0)
        for k in range(5000 * n):
            tally.note(f"queue {n} {k}", f"task {n} {k}", DONE, 0, 0)
        meter.take()
        seen.append(samples(meter).keys())
    assert seen[0] == seen[1] == seen[2]
    attempts = {"queue": "other", "task": "unknown", "outcome": "succeeded"}
    assert value(meter, "outbox_job_attempts_total", **attempts) == 15_003
    assert value(meter, "outbox_job_attempts_total", queue="mail", task="send", outcome="succeeded") == 3


def test_a_worker_of_many_queues_tells_of_two_hundred() -> None:
    tally, names = Tally(), [f"q{n}" for n in range(MOST_QUEUES + 50)]
    meter = Meter(tally, {"send": "q0"}, names)
    for name in names:
        tally.note(name, "send", DONE, 0, 0)
    meter.take()
    assert len({queue for queue, _, _ in meter.total()}) == MOST_QUEUES + 1
    assert meter.total()["other", "send", "succeeded"].count == 50
