"""``python -m tests.benchmarks.plots``: put what was measured last into docs/speed.md, as a table and as pictures."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pygal
from pygal.style import Style

from tests.benchmarks.report import CURVES, FILE

PAGE = Path("docs/speed.md")
PICTURES = Path("docs/speed")

OURS, OTHERS = "#0969da", "#8c959f"

# Colours that can be read on white and on black: a page's reader may have either.
STYLE = Style(
    background="transparent",
    plot_background="transparent",
    foreground="#6e7781",
    foreground_strong="#6e7781",
    foreground_subtle="#6e7781",
    colors=(OURS, "#bf8700", "#8250df", "#1a7f37"),
    guide_stroke_color="#8c959f44",
    major_guide_stroke_color="#8c959f66",
    font_family="system-ui, sans-serif",
    opacity="1",
    label_font_size=14,
    major_label_font_size=14,
    legend_font_size=14,
    title_font_size=16,
)


def main() -> None:
    """Draw all pictures and write the table."""
    rows = json.loads(FILE.read_text())
    PICTURES.mkdir(exist_ok=True)
    _bars("drain", "Jobs a second, one worker process", rows, "drain, jobs/s", most_first=True)
    _bars("latency", "Milliseconds from commit to start, median", rows, "commit to start, p50 ms", most_first=False)
    for curve in json.loads(CURVES.read_text()):
        _lines(curve)
    page = PAGE.read_text()
    PAGE.write_text(re.sub(r"(?s)(<!-- table -->\n).*?(<!-- end -->)", rf"\g<1>{_table(rows)}\g<2>", page))


def _bars(name: str, title: str, rows: Sequence[Mapping[str, Any]], row: str, *, most_first: bool) -> None:
    """One bar for each queue that this row was measured against, and one for ours."""
    found = [each for each in rows if each["row"] == row and each["theirs"] is not None and each["against"] in NAMES]
    if not found:
        return
    values = {NAMES[each["against"]]: each["theirs"] for each in found}
    values["outbox"] = sorted(each["ours"] for each in found)[len(found) // 2]
    ordered = sorted(values.items(), key=lambda each: each[1], reverse=not most_first)
    chart = pygal.HorizontalBar(**_common(title), show_legend=False, height=60 + 36 * len(values))
    chart.x_labels = [f"{each}   {_number(value)}" for each, value in ordered]
    chart.add("", [{"value": value, "color": OURS if each == "outbox" else OTHERS} for each, value in ordered])
    (PICTURES / f"{name}.svg").write_text(chart.render())


def _lines(curve: Mapping[str, Any]) -> None:
    highest = max(max(values) for values in curve["lines"].values())
    chart = pygal.XY(
        **_common(curve["title"]), height=320, range=(0, highest * 1.15), legend_at_bottom=True, dots_size=2
    )
    for name, values in curve["lines"].items():
        chart.add(name, list(zip(curve["x"], values, strict=True)))
    (PICTURES / f"{re.sub('[^a-z]+', '-', curve['title'].lower())}.svg").write_text(chart.render())


def _common(title: str) -> dict[str, Any]:
    return {
        "title": title,
        "style": STYLE,
        "width": 820,
        "js": (),
        "margin": 12,
        "disable_xml_declaration": True,
        "value_formatter": _number,
    }


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| | ours | against | theirs | ratio | target | |", "|---|--:|---|--:|--:|---|---|"]
    for row in rows:
        cells = (
            row["row"],
            _number(row["ours"]),
            row["against"],
            _number(row["theirs"]),
            "" if row["ratio"] is None else f"{row['ratio']:.2f}",
            row["target"],
            {True: "met", False: "**missed**", None: ""}[row["met"]],
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


NAMES = {
    "pgqueuer": "PgQueuer",
    "awa": "awa",
    "oban": "Oban",
    "procrastinate": "Procrastinate",
    "celery": "Celery, Redis",
    "arq": "ARQ, Redis",
    "dramatiq": "Dramatiq, Redis",
}
"""The queues as their own pages call them."""


if __name__ == "__main__":
    main()
