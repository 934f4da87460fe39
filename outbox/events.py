"""Everything that the worker reports, one name each, so that people alert on names and not on prose.

    worker_started    worker_id, queues, tasks
    worker_stopping   worker_id, running         it claims no more
    worker_stopped    worker_id, forced          forced: handlers were still running and were left behind
    job_started       job_id, task, attempt      (debug)
    job_ended         job_id, task, attempt, outcome, seconds   (debug; info unless it succeeded)
    lease_lost        job_id, task, fence        the settle was refused: somebody else has claimed or ended the job
    lease_late        job_id, task               a heartbeat found that the lease is gone; the attempt is cancelled
    jobs_rescued      count, failed              leases of dead workers were over
    jobs_released     count                      handed back without having run
    database_lost     error                      said once; the worker goes on trying
    database_back     seconds
    settle_failed     job_id, error              the database refused an outcome; it was settled as failed
    partitions_changed created, dropped
    loop_blocked      seconds                    a handler held the event loop; nothing else ran meanwhile

The library logs through ``logging.getLogger("outbox")`` with the event as the message and its fields in ``extra``.
It configures no logging: that is the application's.
"""

import logging
from typing import Any

log = logging.getLogger("outbox")

DEBUG, INFO, WARNING, ERROR = logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR


def emit(level: int, name: str, /, **fields: Any) -> None:
    """Report one event. Fields never hold arguments or results of jobs."""
    if log.isEnabledFor(level):
        shown = " ".join(f"{key}={_shown(value)}" for key, value in fields.items())
        log.log(level, "%s %s", name, shown, extra={"event": name, "fields": fields})


def _shown(value: Any) -> str:
    text = str(value)
    plain = text.isprintable() and not any(character in text for character in ' "=')
    return text if plain else ascii(text)
