"""Where the jobs of a flow are drawn: in columns, each to the right of all that it comes after."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from outbox.family import Family
from outbox.job import Job

WIDTH, HEIGHT = 190, 46
GAP_X, GAP_Y = 56, 14
MARGIN = 8


@dataclass(frozen=True, slots=True)
class Node:
    """A job and its place, in pixels from the left and from the top."""

    job: Job
    x: int
    y: int


@dataclass(frozen=True, slots=True)
class Graph:
    """A drawing.

    :ivar arrows: the paths from one job to the next, as SVG writes them.
    """

    nodes: Sequence[Node]
    arrows: Sequence[str]
    width: int
    height: int


def draw(family: Family) -> Graph | None:
    """Place the jobs; None if none comes after another."""
    if not family.edges:
        return None
    columns = _columns(family)
    tallest = max(map(len, columns))
    places: dict[UUID, Node] = {}
    for n, column in enumerate(columns):
        top = (tallest - len(column)) * (HEIGHT + GAP_Y) // 2
        for row, job in enumerate(column):
            places[job.id] = Node(job, MARGIN + n * (WIDTH + GAP_X), MARGIN + top + row * (HEIGHT + GAP_Y))
    arrows = [_arrow(places[before], places[after]) for before, after in family.edges]
    width = 2 * MARGIN + len(columns) * (WIDTH + GAP_X) - GAP_X
    height = 2 * MARGIN + tallest * (HEIGHT + GAP_Y) - GAP_Y
    return Graph(list(places.values()), arrows, width, height)


def _columns(family: Family) -> list[list[Job]]:
    """The jobs by how many come before them on the longest way; within a column near to what they come after."""
    before: dict[UUID, list[UUID]] = {job.id: [] for job in family.jobs}
    for first, then in family.edges:
        before[then].append(first)
    depth: dict[UUID, int] = {}
    for job in family.jobs:  # by id; what a job comes after was enqueued before it, or with it
        _measure(job.id, before, depth)
    columns: list[list[Job]] = [[] for _ in range(max(depth.values()) + 1)]
    for job in family.jobs:
        columns[depth[job.id]].append(job)
    row = {job.id: float(n) for column in columns[:1] for n, job in enumerate(column)}
    for column in columns[1:]:
        column.sort(key=lambda job: sum(row[each] for each in before[job.id]) / len(before[job.id]))
        row |= {job.id: float(n) for n, job in enumerate(column)}
    return columns


def _measure(start: UUID, before: dict[UUID, list[UUID]], depth: dict[UUID, int]) -> None:
    """How many jobs come before it, without recursion: a chain may be long. There are no circles."""
    open_ones = [start]
    while open_ones:
        missing = [each for each in before[open_ones[-1]] if each not in depth]
        if missing:
            open_ones += missing
        else:
            id = open_ones.pop()
            depth[id] = 1 + max((depth[each] for each in before[id]), default=-1)


def _arrow(start: Node, end: Node) -> str:
    x1, y1 = start.x + WIDTH, start.y + HEIGHT // 2
    x2, y2 = end.x, end.y + HEIGHT // 2
    bend = (x2 - x1) // 2
    return f"M{x1},{y1} C{x1 + bend},{y1} {x2 - bend},{y2} {x2},{y2}"
