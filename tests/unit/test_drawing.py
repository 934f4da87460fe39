"""Flows, trees and timelines come out right however large, deep or odd the jobs are."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from outbox.dashboard import graph, timeline, tree
from outbox.dashboard.charts import spark
from outbox.family import Family
from outbox.job import Job, State

AT = datetime(2026, 11, 21, tzinfo=UTC)


def job(n: int, **columns: Any) -> Job:
    values: dict[str, Any] = dict.fromkeys(Job.__dataclass_fields__)
    values |= {"id": UUID(int=n), "task": "t", "queue": "q", "state": State.PENDING, "errors": [], "tags": []}
    values |= {"created_at": AT, "run_at": AT, "attempt": 0, "fence": 0, "lost": 0}
    return Job(**(values | columns))


def drawn(*edges: tuple[int, int]) -> graph.Graph:
    ids = sorted({n for edge in edges for n in edge})
    found = graph.draw(Family([job(n) for n in ids], [(UUID(int=a), UUID(int=b)) for a, b in edges], more=False))
    assert found is not None
    return found


def test_a_job_is_drawn_to_the_right_of_all_that_it_comes_after() -> None:
    edges = [(1, 2), (1, 3), (2, 4), (3, 4), (1, 4), (4, 5)]
    picture = drawn(*edges)
    place = {node.job.id.int: (node.x, node.y) for node in picture.nodes}
    assert all(place[before][0] < place[after][0] for before, after in edges)
    assert len(set(place.values())) == len(place)
    assert all(
        0 <= x <= picture.width - graph.WIDTH and 0 <= y <= picture.height - graph.HEIGHT for x, y in place.values()
    )
    assert len(picture.arrows) == len(edges)


def test_a_long_chain_is_drawn() -> None:
    picture = drawn(*((n, n + 1) for n in range(1, 200)))
    assert len({node.x for node in picture.nodes}) == 200


def test_jobs_that_are_tied_to_none_are_not_drawn() -> None:
    assert graph.draw(Family([job(1)], [], more=False)) is None


def balance(rows: list[tree.Row]) -> int:
    depth = 0
    for row in rows:
        depth += row.opens - row.closes
        assert depth >= 0
    return depth


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": [value]}
    return value


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        1,
        1.5,
        "x",
        [],
        {},
        [1, [2, {"a": None}]],
        {"a": {"b": "c"}},
        deep(100),
        list(range(50_000)),
        [[1] * 900] * 9,
    ],
)
def test_a_tree_is_whole_and_bounded(value: Any) -> None:
    rows = tree.tree(value)
    assert balance(rows) == 0
    assert 1 <= len(rows) <= tree.MOST + 2 * tree.DEEPEST + 2


def test_a_tree_says_what_it_cuts() -> None:
    assert any(row.kind == "more" for row in tree.tree(list(range(50_000))))
    assert "5,000 characters" in tree.tree("x" * 5000)[0].text
    assert [row.text for row in tree.tree({"a": "b"})] == ["{ 1 }", '"b"', ""]
    assert tree.tree({})[0].text == "{}"


def error(n: int, seconds: float, kind: str = "ValueError") -> dict[str, Any]:
    return {
        "attempt": n, "fence": n, "type": kind, "message": "no", "traceback": "", "worker_id": str(UUID(int=9)),
        "at": (AT + timedelta(seconds=seconds)).isoformat(),
    }  # fmt: skip


def test_a_timeline_tells_deliveries_and_the_end_last() -> None:
    ended = job(
        1,
        state=State.FAILED,
        attempt=2,
        fence=3,
        started_at=AT + timedelta(seconds=7),
        finished_at=AT + timedelta(seconds=8),
        errors=[error(1, 1), error(2, 3, "outbox.WorkerLost"), error(2, 8.1)],
        worker_id=UUID(int=9),
    )
    assert [step.title for step in timeline.steps(ended)] == [
        "Enqueued",
        "Attempt 1 failed",
        "Delivery 2: its worker was lost",
        "Delivery 3: claimed",
        "Attempt 2 failed",
        "Failed",
    ]
    waiting = job(1, errors=[error(1, 1)], run_at=AT + timedelta(seconds=60), attempt=1)
    assert [step.title for step in timeline.steps(waiting)][-1] == "Next attempt is due"


@pytest.mark.parametrize("spoilt", [{}, {"at": None}, {"at": AT.isoformat(), "worker_id": "x"}])
def test_a_timeline_stands_an_error_that_lacks_something(spoilt: dict[str, Any]) -> None:
    assert timeline.steps(replace(job(1), errors=[spoilt]))[0].title == "Enqueued"


def test_a_sparkline_stays_in_its_box() -> None:
    for counts in ([], [0], [5], [0, 0, 0], [1, 1000, 3]):
        numbers = [float(n) for point in spark(counts).removeprefix("M").split(" L") if point for n in point.split(",")]
        assert all(0 <= n <= 120 for n in numbers)
