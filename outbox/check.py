"""Before a deploy: would this code run the jobs that wait?

Every live job is read, in pages by id, and its arguments are made as a worker would make them; no handler is called.
Each page is a read-only transaction of its own, so that nothing is locked and no old snapshot keeps vacuum from its
work. What is enqueued meanwhile may be missed.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from uuid import UUID

import asyncpg

from outbox import connection
from outbox.errors import PayloadInvalid
from outbox.registry import Outbox

PAGE = 100
EXAMPLES = 3

MOST = 200
"""Problems that are told apart; what comes after them is only counted, so that a report stays small."""

_POSITION = re.compile(r"\[\d+\]")

_NEXT = """
select id, task, version, payload::text from outbox.live_job
where id > $1 order by id limit $2
"""


@dataclass(slots=True)
class Problem:
    """Jobs of one task that this code would not run, for one reason.

    :ivar fails: whether they would fail; otherwise they wait for a worker that knows them.
    :ivar reason: where and why, without any value.
    :ivar examples: ids of the first of them.
    """

    task: str
    fails: bool
    reason: str
    count: int = 0
    examples: list[UUID] = field(default_factory=list)


@dataclass(slots=True)
class Report:
    """What a check has found.

    :ivar checked: how many jobs it has looked at.
    """

    checked: int = 0
    _problems: dict[tuple[str, str], Problem] = field(default_factory=dict)

    @property
    def problems(self) -> Sequence[Problem]:
        """Those that would fail first, then by task and number."""
        return sorted(self._problems.values(), key=lambda each: (not each.fails, each.task, -each.count))

    def add(self, id: UUID, task: str, reason: str, *, fails: bool) -> None:
        """Note a job that this code would not run."""
        if len(self._problems) >= MOST and (task, reason) not in self._problems:
            task, reason, fails = "(others)", "for other reasons", True
        problem = self._problems.setdefault((task, reason), Problem(task, fails, reason))
        problem.count += 1
        if len(problem.examples) < EXAMPLES:
            problem.examples.append(id)


async def check(outbox: Outbox, url: str, *, progress: Callable[[int], None] = lambda _: None) -> Report:
    """Look at every job that waits or runs.

    :param url: a libpq or SQLAlchemy URL of the database.
    :param progress: told, page by page, how many jobs have been looked at.
    :raises DeclarationError: if a task lacks an upcaster.
    """
    outbox.verify()
    report, last = Report(), UUID(int=0)
    link = await asyncpg.connect(connection.dsn(url), timeout=10, statement_cache_size=0)  # there may be a pooler
    try:
        while True:
            async with link.transaction(readonly=True):
                rows = await link.fetch(_NEXT, last, PAGE)
            if not rows:
                return report
            for row in rows:
                _look(outbox, report, row)
            last = rows[-1]["id"]
            report.checked += len(rows)
            progress(report.checked)
    finally:
        await link.close()


def _look(outbox: Outbox, report: Report, row: asyncpg.Record) -> None:
    name, version = row["task"], row["version"]
    if name not in outbox:
        report.add(row["id"], name, "unknown task", fails=False)
        return
    task = outbox[name]
    if version > task.version:
        report.add(row["id"], name, f"has version {version}, this code knows {task.version}", fails=False)
        return
    try:
        task.arguments(row["payload"], version, row["id"])
    except PayloadInvalid as exc:
        report.add(row["id"], name, f"{_POSITION.sub('[*]', exc.path)}: {exc.rule}", fails=True)
