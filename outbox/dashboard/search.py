"""What stands in the filter bar: ``state:failed queue:mail args.order.id:42 after:2h``, to be read and to be written.

The same text is in the page's address, so that every list can be kept, sent to somebody, and come back to.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from outbox.job import State
from outbox.status import JobFilter

WORDS: Mapping[str, str] = {
    "state": "pending, running, succeeded, failed or cancelled",
    "queue": "its queue",
    "task": "its task",
    "tag": "one of its tags",
    "key": "its unique key",
    "group": "its group",
    "batch": "the id of its batch",
    "tenant": "whose it is",
    "args.": "what its arguments contain: args.order.id:42",
    "after": "enqueued since: 30m, 2h, 7d, 2026-11-20 or 2026-11-20T10:00",
    "before": "enqueued before",
}
"""What can be asked for, and what it means."""

MAX_LENGTH = 2000

_TERM = re.compile(r'\s*(args\.[^\s:"]+|[a-z]+):(?:"((?:[^"\\]|\\.)*)"|([^\s"]\S*))(?=\s|$)')
_AGE = re.compile(r"(\d{1,6})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_SINGLE = frozenset({"key", "group", "batch", "tenant", "after", "before"})


class SearchError(ValueError):
    """It can't be read; the text says where and what would do."""


@dataclass(frozen=True, slots=True)
class Search:
    """A filter as it is written: pairs of a word and what it must be."""

    terms: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return " ".join(f"{word}:{_quoted(value)}" for word, value in self.terms)

    def having(self, word: str, value: str) -> "Search":
        """With this as well, in place of what only one of can hold."""
        kept = tuple(term for term in self.terms if term != (word, value) and not (word in _SINGLE and term[0] == word))
        return Search((*kept, (word, value)))

    def without(self, word: str, value: str | None = None) -> "Search":
        """Without this, or without all of this word."""
        return Search(tuple(term for term in self.terms if term[0] != word or value not in (None, term[1])))

    def without_arguments(self) -> "Search":
        """Without what is asked of arguments: an audit holds none."""
        return Search(tuple(term for term in self.terms if not term[0].startswith("args.")))

    def toggled(self, word: str, value: str) -> "Search":
        """With this if it is not there, else without."""
        return self.without(word, value) if (word, value) in self.terms else self.having(word, value)

    def values(self, word: str) -> list[str]:
        """All values of a word."""
        return [value for name, value in self.terms if name == word]

    def wanted(self, now: datetime, tenant: str | None = None, *, payloads: bool = True) -> JobFilter:
        """The same in the library's words.

        :param tenant: whose jobs alone are seen.
        :param payloads: whether arguments may be asked about: who may not see them could guess them.
        :raises SearchError: if a value is none for its word, or is not to be asked for.
        """
        if not payloads and self != self.without_arguments():
            raise SearchError("args: looking for jobs by their arguments needs the scope read:payload")
        return JobFilter(
            states=[_state(value) for value in self.values("state")],
            queues=self.values("queue"),
            tasks=self.values("task"),
            tags=self.values("tag"),
            key=self._one("key"),
            group=self._one("group"),
            batch=_id(self._one("batch")),
            tenant=tenant if tenant is not None else self._one("tenant"),
            arguments=self._arguments(),
            created_after=_moment(self._one("after"), now),
            created_before=_moment(self._one("before"), now),
        )

    def _one(self, word: str) -> str | None:
        return next(iter(self.values(word)), None)

    def _arguments(self) -> dict[str, Any]:
        wanted: dict[str, Any] = {}
        for word, value in self.terms:
            if not word.startswith("args."):
                continue
            inner = wanted
            *outer, last = word.removeprefix("args.").split(".")
            for name in outer:
                inner = inner.setdefault(name, {})
                if not isinstance(inner, dict):
                    raise SearchError(f"{word}: {name} is asked to be two things at once")
            inner[last] = _value(value)
        return wanted


def parse(text: str) -> Search:
    """Read what somebody has typed.

    :raises SearchError: if it can't be read.
    """
    if len(text) > MAX_LENGTH:
        raise SearchError(f"longer than {MAX_LENGTH:,} characters")
    search, at = Search(), 0
    text = text.strip()
    while at < len(text):
        match = _TERM.match(text, at)
        if match is None:
            rest = text[at:].split()[0]
            raise SearchError(f"{rest[:50]}: write a word, a colon and a value, as in state:failed")
        word, quoted, plain = match.groups()
        if word not in WORDS and not word.startswith("args."):
            raise SearchError(f"{word[:50]}: can't be asked for; there are {', '.join(WORDS)}")
        value = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else plain
        search, at = search.having(word, value), match.end()
    return search


def _quoted(value: str) -> str:
    if value and not re.search(r'[\s"\\]', value):
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _state(value: str) -> State:
    try:
        return State(value)
    except ValueError:
        raise SearchError(f"state:{value[:50]}: must be one of {', '.join(State)}") from None


def _id(value: str | None) -> UUID | None:
    if value is None:
        return None
    try:
        return UUID(value)
    except ValueError:
        raise SearchError(f"batch:{value[:50]}: must be the id of a batch") from None


def _moment(value: str | None, now: datetime) -> datetime | None:
    if value is None:
        return None
    try:
        if match := _AGE.fullmatch(value):
            return now - timedelta(**{_UNITS[match[2]]: int(match[1])})
        moment = datetime.fromisoformat(value)
    except (ValueError, OverflowError):
        raise SearchError(f"{value[:50]}: write 30m, 2h, 7d, 2026-11-20 or 2026-11-20T10:00") from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _value(text: str) -> Any:
    """What an argument must be: a number, true, false or null if it says so, and else a text."""
    try:
        value = json.loads(text, parse_constant=str)
    except (ValueError, RecursionError):
        return text
    return text if isinstance(value, list | dict) else value
