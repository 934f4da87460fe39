"""What a worker and its child processes say to each other: a line of JSON each, and nothing that could run as code."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import TypeAdapter

from outbox.context import Claim
from outbox.outcome import Outcome

M = TypeVar("M")

MAX_LINE = 4 * 2**20
"""Bytes. More than a result, a checkpoint and an error of the sizes that can be stored, all of them escaped twice."""


@dataclass(frozen=True, slots=True)
class Order:
    """The worker's: run this job.

    :ivar module: where the task is declared, as the worker has found it in its own registry; never from a row.
    :ivar name: the task's name in that module.
    """

    module: str
    name: str
    claim: Claim


@dataclass(frozen=True, slots=True)
class Word:
    """The child's: how the job stands. The first says that the handler is about to start, the last how it ended.

    :ivar progress: as in ``Claim``.
    :ivar kept: as in ``Claim``.
    """

    progress: str | None = None
    kept: str | None = None
    outcome: Outcome | None = None


class Line(Generic[M]):
    """A kind of message as a line, and back."""

    def __init__(self, kind: type[M]) -> None:
        self._adapter = TypeAdapter(kind)

    def write(self, message: M) -> bytes:
        """The message as a line, its end included."""
        return self._adapter.dump_json(message) + b"\n"

    def read(self, line: bytes) -> M:
        """The message that the line holds."""
        return self._adapter.validate_json(line)


ORDER = Line(Order)
WORD = Line(Word)
