"""JSON as a tree that folds: what pages make of arguments and results, however large or deep these are."""

from dataclasses import dataclass
from typing import Any

MOST = 1000
"""Values at most that a tree shows; whoever wants all of them asks the API."""

DEEPEST = 12

LONGEST = 2000
"""Characters at most of one text."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the tree.

    :ivar opens: whether the lines after it, up to the one that closes, are inside it.
    :ivar kind: what it is, for its colour: text, number, word, more, or branch.
    """

    name: str
    text: str
    kind: str
    opens: bool = False
    closes: bool = False


def tree(value: Any) -> list[Row]:
    """The lines; a branch is followed by what is in it, and then by a line that closes it."""
    rows: list[Row] = []
    _add(rows, "", value, 0)
    return rows


def _add(rows: list[Row], name: str, value: Any, depth: int) -> None:
    match value:
        case dict() | list() if value and depth < DEEPEST:
            _add_branch(rows, name, value, depth)
        case dict() | list():
            inside = f" … {len(value):,} " if value else ""
            rows.append(Row(name, inside.join("{}" if isinstance(value, dict) else "[]"), "word"))
        case str():
            cut = f"… {len(value):,} characters" if len(value) > LONGEST else ""
            rows.append(Row(name, f'"{value[:LONGEST]}"{cut}', "text"))
        case bool() | None:
            rows.append(Row(name, {True: "true", False: "false", None: "null"}[value], "word"))
        case _:
            rows.append(Row(name, str(value), "number"))


def _add_branch(rows: list[Row], name: str, value: dict[str, Any] | list[Any], depth: int) -> None:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    rows.append(Row(name, f" {len(value):,} ".join("{}" if isinstance(value, dict) else "[]"), "branch", opens=True))
    for key, each in items:
        if len(rows) >= MOST:
            rows.append(Row("", "… cut here", "more"))
            break
        _add(rows, str(key), each, depth + 1)
    rows.append(Row("", "", "branch", closes=True))
