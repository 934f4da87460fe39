"""Everything that the worker reports, one name each, so that people alert on names and not on prose.

    worker_started      worker_id, queues, tasks
    worker_stopping     worker_id, running          it claims no more
    worker_stopped      worker_id, left_running, unsettled
    worker_abandoned    worker_id, left_running     its event loop was blocked; a thread handed its jobs back
    job_ended           job_id, task, attempt, outcome, error, seconds    (debug if it succeeded)
    jobs_released       count                       handed back without having run
    lease_late          job_id, task, fence         a heartbeat found the lease gone; the attempt is cancelled
    lease_lost          job_id, task, fence         the settle was refused: the job is somebody else's, or over
    jobs_rescued        count, failed               leases of dead workers were over
    settle_failed       job_id, task, error         Postgres refused an outcome; it was written without its texts
    database_lost       link, error                 said when it begins and while it lasts; the worker goes on
    database_back       link, seconds
    pooler_found        link                        (debug) between it and the database, with sessions that are not ours
    wake_up_off         reason                      nobody can listen through a pooler; polling finds the jobs
    api_local_only                                  nobody has said who may ask; only this machine is answered
    watch_failed        error, waiting              jobs could not be looked at for those who wait for them; tried again
    schedule_invalid    schedule, error             it cannot be read; others fire all the same
    partitions_changed  created, dropped
    partition_busy      statement                   (debug) a lock was not free; tried again later
    loop_blocked        seconds                     a handler held the event loop; nothing else ran meanwhile
    hint_lost           error                       (debug) a wake-up could not be sent; polling finds the jobs
    duty_failed         duty, error                 the database refuses what a heartbeat does; its other duties go on
    probe_started       host, port                  figures for Prometheus are told there, and whether it is alive
    heartbeat_alone     error                       (debug) the worker's loop was gone before its heartbeat

The library logs through ``logging.getLogger("outbox")`` with the event as the message and its fields in ``extra``.
It configures no logging: that is the application's.
"""

import logging
from typing import Any

FORMAT = "%(asctime)s %(levelname)-7s %(name)s %(message)s"
"""How the library's own programs write a line; yours may write it in any way."""

MOST = 1000
"""Characters of a field that are shown; ``extra`` has all of it."""

log = logging.getLogger("outbox")

DEBUG, INFO, WARNING, ERROR = logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR


def emit(level: int, name: str, /, **fields: Any) -> None:
    """Report one event, in one line whatever its fields hold. They never hold arguments or results of jobs."""
    if log.isEnabledFor(level):
        shown = " ".join(f"{key}={_shown(value)}" for key, value in fields.items())
        log.log(level, "%s %s", name, shown, extra={"event": name, "fields": fields})


def _shown(value: Any) -> str:
    text = str(value)
    if len(text) > MOST:
        text = text[:MOST] + "…"
    # Line ends, escape sequences of terminals and marks that turn the direction of writing are not printable.
    plain = text.isprintable() and not any(character in text for character in ' "=')
    return text if plain else ascii(text)
