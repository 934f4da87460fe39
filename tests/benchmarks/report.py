"""The figures: each beside what it is measured against in the same run, as a table and as build/bench.json."""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

FILE = Path("build/bench.json")
CURVES = Path("build/curves.json")


@dataclass(frozen=True)
class Row:
    """One figure beside what it is measured against, in the same run.

    :ivar target: what the ratio, or ours, must be; empty where it is only told.
    """

    row: str
    ours: float
    against: str
    theirs: float | None
    ratio: float | None
    target: str
    met: bool | None


def at_least(row: str, ours: float, against: str, theirs: float, target: float) -> Row:
    """Ours must be so many times theirs or more."""
    return Row(row, ours, against, theirs, ours / theirs, f"≥ {target:g} x", ours / theirs >= target)


def at_most(row: str, ours: float, against: str, theirs: float, target: float) -> Row:
    """Ours must be so many times theirs or less."""
    return Row(row, ours, against, theirs, ours / theirs, f"≤ {target:g} x", ours / theirs <= target)


def below(row: str, ours: float, limit: float, against: str = "", theirs: float | None = None) -> Row:
    """Ours must be no more than the limit."""
    return Row(row, ours, against, theirs, theirs and ours / theirs, f"≤ {limit:,g}", ours <= limit)


def above(row: str, ours: float, limit: float, against: str = "", theirs: float | None = None) -> Row:
    """Ours must be no less than the limit."""
    return Row(row, ours, against, theirs, theirs and ours / theirs, f"≥ {limit:,g}", ours >= limit)


def told(row: str, ours: float, against: str = "", theirs: float | None = None) -> Row:
    """A figure without a target."""
    return Row(row, ours, against, theirs, theirs and ours / theirs, "", None)


@dataclass(frozen=True)
class Curve:
    """What changes over time or from round to round.

    :ivar lines: name of a line → its values, one for each of ``x``.
    """

    title: str
    x: list[float]
    lines: dict[str, list[float]]


_curves: list[Curve] = []


def draw(title: str, x: list[float], **lines: list[float]) -> None:
    """Keep a curve for the plots."""
    _curves.append(Curve(title, x, lines))


def show(table: list[Row]) -> None:
    """Print the table and write it down for machines."""
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps([asdict(row) for row in table], indent=2, ensure_ascii=False) + "\n")
    CURVES.write_text(json.dumps([asdict(curve) for curve in _curves], indent=2, ensure_ascii=False) + "\n")
    print(f"{'':48}{'ours':>12}  {'against':28}{'theirs':>12}{'ratio':>8}  target")
    for row in table:
        print(line(row))


def line(row: Row) -> str:
    """One row of the table."""
    theirs = "" if row.theirs is None else f"{row.theirs:,.2f}"
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    mark = "" if row.met is None else "met" if row.met else "MISSED"
    return f"{row.row:48}{row.ours:>12,.2f}  {row.against:28}{theirs:>12}{ratio:>8}  {row.target:11} {mark}"


def say(text: str) -> None:
    """Progress, apart from the table."""
    print(text, file=sys.stderr, flush=True)
