"""What a worker says, line by line: as JSON for programs, and as ``outbox dev`` shows it to a developer."""

import json
import logging
import sys
import time
from datetime import UTC, datetime
from typing import Any

from rich.text import Text

from outbox.cli.console import clean, out
from outbox.context import Claim
from outbox.job import State
from outbox.outcome import RELEASED, Finished, Outcome
from outbox.words import span

_MARKS = {
    State.SUCCEEDED: ("✓", "green"),
    State.FAILED: ("✗", "bold red"),
    State.CANCELLED: ("-", "yellow"),
}

_LINE = "\n"

_TOLD_OTHERWISE = {"job_ended", "worker_started", "worker_stopping", "worker_stopped"}
"""Events that a developer sees in another form."""


class JsonLines(logging.Formatter):
    """A record as a line of JSON; an event of the library with its fields."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        said: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        if (event := getattr(record, "event", None)) is not None:
            said |= {"event": event, "fields": getattr(record, "fields", {})}
        else:
            said["message"] = record.getMessage()
        if record.exc_info:
            said["traceback"] = self.formatException(record.exc_info)
        return json.dumps(said, default=str)


class DevLines(logging.Handler):
    """Shows a developer what a worker does: a line for each attempt that begins or ends, and whatever is logged.

    :param as_json: as lines of JSON.
    """

    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def note(self, event: str, mark: tuple[str, str], text: str, dim: str = "", **fields: Any) -> None:
        """Say one thing.

        :param event: its name for programs, with its fields.
        :param mark: a sign and its colour, for people, with the text, and what is less important.
        """
        if self._as_json:
            _put(json.dumps({"time": datetime.now(UTC).isoformat(), "event": event, **fields}, default=str))
            return
        line = Text.assemble((time.strftime("%H:%M:%S "), "dim"), mark, " ", clean(text))
        if dim:
            line.append(f"  {clean(dim)}", "dim")
        _put(line)

    def started(self, claim: Claim) -> None:
        """Its handler begins."""
        which = f" (attempt {claim.attempt})" if claim.attempt > 1 else ""
        self.note("started", ("→", "cyan"), claim.task + which, str(claim.id), **_about(claim))

    def ended(self, claim: Claim, outcome: Outcome, seconds: float) -> None:
        """It is over."""
        name, mark, said = _how(claim, outcome, span(seconds))
        fields: dict[str, Any] = {**_about(claim), "outcome": name, "seconds": round(seconds, 3)}
        if outcome.error is None:
            self.note("ended", mark, f"{claim.task} {said}", str(claim.id), **fields)
            return
        error = f"{outcome.error.type}: {outcome.error.message}"
        fields |= {"error": error, "traceback": outcome.error.traceback}
        self.note("ended", mark, f"{claim.task} {said}: {error.partition(_LINE)[0]}", str(claim.id), **fields)
        if not self._as_json:
            _put(Text(clean(outcome.error.traceback.rstrip()), "dim"))

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record."""
        event = getattr(record, "event", None)
        if event in _TOLD_OTHERWISE:
            if event == "worker_started":
                fields: dict[str, Any] = getattr(record, "fields", {})
                queues = ", ".join(f"{name}:{slots}" for name, slots in fields["queues"].items())
                text = f"ready: {fields['tasks']} tasks; queues {queues}"
                self.note("ready", ("●", "green"), text, tasks=fields["tasks"], queues=fields["queues"])
            return
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + (self.formatter or logging.Formatter()).formatException(record.exc_info)
        style = "red" if record.levelno >= logging.ERROR else "yellow" if record.levelno >= logging.WARNING else "dim"
        self.note(
            "log", ("·", style), text, record.name, level=record.levelname.lower(), message=text, logger=record.name
        )


def _about(claim: Claim) -> dict[str, Any]:
    return {"job_id": claim.id, "task": claim.task, "queue": claim.queue, "attempt": claim.attempt}


def _how(claim: Claim, outcome: Outcome, took: str) -> tuple[str, tuple[str, str], str]:
    """How an attempt ended: for programs, its mark, and in words."""
    if isinstance(outcome, Finished):
        which = f" at attempt {claim.attempt}" if outcome.state is State.FAILED else ""
        return str(outcome.state), _MARKS[outcome.state], f"{outcome.state}{which} in {took}"
    if outcome is RELEASED:
        return "released", ("←", "yellow"), f"handed back after {took}"
    if outcome.error is None:
        return "snoozed", ("↻", "yellow"), f"snoozed for {span(outcome.delay)} after {took}"
    return "retried", ("↻", "yellow"), f"failed in {took}, again in {span(outcome.delay)}"


def _put(line: Text | str) -> None:
    try:
        if isinstance(line, str):
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
        else:
            out.print(line, soft_wrap=True)
    except (OSError, SystemExit):
        pass  # nobody reads it any more: that must be no job's failure
