"""The commands of the command line, in this process: for what holds for all of them."""

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from outbox.cli import command

ID = "01a1fbd7-c1c0-7423-be91-f1d20e30ae1d"

ARGUMENTS = {
    "jobs show": [ID],
    "jobs explain": [ID],
    "jobs retry": [ID],
    "jobs cancel": ["--all"],
    "jobs discard": ["--state", "failed"],
    "jobs run-now": ["--all"],
    "queues pause": ["mail"],
    "queues resume": ["mail"],
    "schedules pause": ["daily"],
    "schedules resume": ["daily"],
    "schedules fire": ["daily"],
    "keys create": ["ci", "--scope", "read"],
    "keys revoke": ["obx_nobody"],
    "check": ["api.handlers:outbox"],
    "openapi": ["api.handlers:outbox"],
}
"""What a command needs to be told."""


def leaves(group: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """All commands that do something, by their words."""
    for name, each in group.commands.items():
        if hasattr(each, "commands"):
            yield from leaves(each, f"{path}{name} ")
        else:
            yield path + name, each


def invoke(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run a command; its exit status, and what it has printed and complained."""
    path = list(sys.path)
    try:
        with pytest.raises(SystemExit) as left:
            command()(list(arguments), prog_name="outbox")
    finally:
        sys.path[:] = path
    printed = capsys.readouterr()
    code = left.value.code
    return (code if isinstance(code, int) else 0), printed.out, printed.err
