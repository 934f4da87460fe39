"""The list of events is what operators alert on: it names all of them."""

import logging
import re
from pathlib import Path

import pytest

from outbox import events

LIBRARY = Path(events.__file__).parent


def test_every_event_that_is_emitted_is_listed_and_the_other_way_round() -> None:
    emitted = set()
    for module in LIBRARY.rglob("*.py"):
        # The name is the first string after the level, which may be a variable.
        emitted |= set(re.findall(r"events\.emit\(\s*[\w.]+,\s*\"(\w+)\"", module.read_text()))
    listed = set(re.findall(r"^    (\w+)  +\w", events.__doc__ or "", re.MULTILINE))
    assert emitted == listed


@pytest.mark.parametrize(
    "text",
    [
        'one\n{"level": "info", "event": "worker_stopped"}',
        "one\r\n2026-01-01 INFO outbox worker_stopped",
        "\x1b[2J\x1b]0;title\x07",
        "\x9b31m",
        "\u202eevil\u2066",
        "one\u2028two\u0085three\x0bfour",
        "\x00",
        "\ud800",
        'noop" event=worker_stopped error="',
        "x" * 1_000_000,
    ],
    ids=ascii,
)
@pytest.mark.parametrize("field", ["task", "queue", "error"])
def test_whatever_a_field_holds_an_event_is_one_plain_line(
    caplog: pytest.LogCaptureFixture, field: str, text: str
) -> None:
    with caplog.at_level(logging.INFO):
        events.emit(events.INFO, "job_ended", **{field: text, "attempt": 1})
    [record] = caplog.records
    line = logging.Formatter(events.FORMAT).format(record)
    assert line.isprintable()
    assert len(line.splitlines()) == 1
    assert len(line) < 5000
    # It is one field still: what comes after it is what was said after it.
    shown = re.search(rf"job_ended {field}=('.*'|\S*) attempt=1$", line)
    assert shown, line
    assert record.__dict__["fields"][field] == text  # for those who write JSON, which escapes by itself
