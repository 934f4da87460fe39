"""Random histories of two workers, an enqueuer and an operator against a model of what a queue is, on real Postgres.

Time passes where a rule says so: what is due later is moved into the past by hand. After every step all rows are
compared with the model. ``OUTBOX_TEST_EXAMPLES`` says how many histories the slow run has.
"""

import asyncio
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar
from uuid import UUID

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool

from outbox import Limit, NewJob, Outbox, State, WorkerSettings, control, limit, maintenance, marks, queue
from outbox import claim as claims
from outbox.connection import Link
from outbox.context import Claim
from outbox.errors import IllegalTransition, KeyTaken
from outbox.job import MAX_LOST, TERMINAL
from outbox.marks import Marks
from outbox.outcome import RELEASED, Error, Finished, Outcome, Postponed
from tests.factories import WORKER

A_FEW = 15
MANY = int(os.environ.get("OUTBOX_TEST_EXAMPLES", "80"))
STEPS = 40
AT_ONCE = 2
"""Jobs of the limited task that may run at once."""

DAY = 86_400.0
ALL_TABLES = "live_job, finished_job, held_key, job_limit, job_bucket, queue, batch, dependency"

_TIME_PASSES = """
update outbox.live_job set run_at = clock_timestamp() - came.n * interval '1 microsecond'
from (
    select id, row_number() over (order by id) as n from outbox.live_job where state = 'pending' and run_at > now()
) came
where live_job.id = came.id
"""

outbox = Outbox()


@outbox.task(retry=3)
async def plain() -> None: ...


@outbox.task(retry=3)
async def limited() -> None: ...


OUTCOMES: list[Outcome] = [
    Finished(State.SUCCEEDED),
    Finished(State.FAILED, error=Error("x.Y", "no")),
    Finished(State.CANCELLED),
    Postponed(0.0, Error("x.Y", "no"), charged=True),
    Postponed(DAY, Error("x.Y", "no"), charged=True),
    Postponed(DAY),
    RELEASED,
]


@dataclass
class Model:
    """What must be true of a job."""

    id: UUID
    task: str
    priority: int
    group: str | None
    passable: bool
    key: str | None
    due: bool
    state: State = State.PENDING
    fence: int = 0
    attempt: int = 0
    lost: int = 0
    cancel_asked: bool = False
    place: str | None = None
    """In its group: ``new`` outside, ``group`` behind others, None in front (or in no group)."""


class Queue(RuleBasedStateMachine):
    """The rules; each does a thing to the database and the same to the model."""

    engine: ClassVar[AsyncEngine]
    links: ClassVar[list[Link]]
    runner: ClassVar[asyncio.Runner]

    def __init__(self) -> None:
        super().__init__()
        self.jobs: dict[UUID, Model] = {}
        self.held: list[Claim] = []
        self.stale: list[Claim] = []
        self.paused = False
        self.late: list[tuple[AsyncSession, NewJob]] = []
        self.marks = [Marks(), Marks()]

    @initialize()
    def begin(self) -> None:
        self.run(self._begin())

    async def _begin(self) -> None:
        async with AsyncSession(self.engine) as session, session.begin():
            await session.execute(text(f"truncate {', '.join('outbox.' + name for name in ALL_TABLES.split(', '))}"))
            await limit.put(session, "task", "limited", Limit(concurrency=AT_ONCE))

    # The enqueuer.

    @rule(
        task=st.sampled_from([plain, limited]),
        priority=st.integers(0, 3),
        group=st.sampled_from([None, None, "g", "h"]),
        passable=st.booleans(),
        key=st.sampled_from([None, None, None, "k", "l"]),
        later=st.booleans(),
        commits=st.sampled_from([True, True, True, False]),
    )
    def enqueue(
        self, task: Any, priority: int, group: str | None, passable: bool, key: str | None, later: bool, commits: bool
    ) -> None:
        if task is limited:
            group = None
        options = {"priority": priority, "group": group, "key": key, "delay": DAY if later else 0.0}
        options["passable"] = passable and group is not None
        job: NewJob = task.options(**options).job()
        owner = next(
            (each for each in self.live() if key is not None and (each.task, each.key) == (job.task, key)), None
        )
        self.run(self._enqueue(job, commits))
        assert job.is_new == (owner is None)
        assert owner is None or job.id == owner.id
        if commits and owner is None:
            place = None if group is None else "new"
            passable = bool(options["passable"])
            self.jobs[job.id] = Model(job.id, job.task, priority, group, passable, key, not later, place=place)

    async def _enqueue(self, job: NewJob, commits: bool) -> None:
        async with AsyncSession(self.engine) as session:
            session.add(job)
            await session.flush()
            await (session.commit() if commits else session.rollback())

    @rule(count=st.integers(2, 5))
    def enqueue_limited(self, count: int) -> None:
        for _ in range(count):
            self.enqueue(limited, 1, None, passable=False, key=None, later=False, commits=True)

    @rule(group=st.sampled_from(["g", "h"]), laters=st.lists(st.booleans(), min_size=2, max_size=4))
    def enqueue_group(self, group: str, laters: list[bool]) -> None:
        for later in laters:
            self.enqueue(plain, 1, group, passable=True, key=None, later=later, commits=True)

    @rule()
    def enqueue_and_commit_later(self) -> None:
        self.late.append(self.run(self._flushed()))

    async def _flushed(self) -> tuple[AsyncSession, NewJob]:
        session = AsyncSession(self.engine)
        job = plain.enqueue(session)
        await session.flush()
        return session, job

    @precondition(lambda self: self.late)
    @rule(commits=st.booleans(), data=st.data())
    def end_of_a_late_one(self, commits: bool, data: st.DataObject) -> None:
        session, job = self.late.pop(data.draw(st.integers(0, len(self.late) - 1)))
        self.run(self._end(session, commits))
        if commits:
            self.jobs[job.id] = Model(job.id, job.task, 1, None, passable=False, key=None, due=True)

    async def _end(self, session: AsyncSession, commits: bool) -> None:
        await (session.commit() if commits else session.rollback())
        await session.close()

    # The workers.

    @rule(worker=st.integers(0, 1), slots=st.integers(1, 4))
    def claim(self, worker: int, slots: int) -> None:
        before = self.claimable("plain")
        room = max(0, AT_ONCE - sum(job.state is State.RUNNING and job.task == "limited" for job in self.jobs.values()))
        may_limited = self.claimable("limited")
        taken, at_once = self.run(self._claim(worker, slots))
        arrived = [job for job in self.live() if job.place == "new" and job.due]
        for job in arrived:
            job.place = "group"
        for group in {job.group for job in arrived}:
            self.open_next(group)
        may = {*before, *self.claimable("plain"), *may_limited}
        ids = [claim.id for claim in taken]
        assert len(set(ids)) == len(ids) <= slots
        assert set(ids) <= may, "it took what may not be claimed"
        took_limited = [id for id in ids if self.jobs[id].task == "limited"]
        assert len(took_limited) <= room, "more than the limit lets run"
        suspects = [id for id in may if self.jobs[id].lost >= MAX_LOST - 1]
        assert sum(id in suspects for id in ids) <= 1, "two suspects at once"
        if not suspects:
            plain_ones = len(self.claimable("plain"))
            least = min(slots, len(before)) if len(before) >= slots else plain_ones
            assert len(ids) == min(slots, max(least, plain_ones) + min(room, len(may_limited))), "it left some"
            left = [self.jobs[id].priority for id in before if id not in ids]
            took = [self.jobs[id].priority for id in ids if id in before]
            in_order = not left or not took or min(took) >= max(left) or len(ids) < slots
            assert in_order or not at_once, "a lower priority went first"
        for claim in taken:
            job = self.jobs[claim.id]
            job.state, job.fence = State.RUNNING, job.fence + 1
            assert (claim.fence, claim.attempt, claim.is_suspect) == (
                job.fence,
                job.attempt + 1,
                job.lost >= MAX_LOST - 1,
            )
        self.held += taken

    async def _claim(self, worker: int, slots: int) -> tuple[list[Claim], bool]:
        """What a worker takes; and whether at once, for where a late commit may have come it looks again."""
        taken: list[Claim] = []
        at_once = True
        while True:
            wanted = {"default": slots - len(taken)}
            taken += await claims.take(
                self.links[worker], wanted, {"plain": 3, "limited": 3}, WORKER, 1000.0, marks=self.marks[worker]
            )
            if len(taken) == slots or not self.marks[worker].again:
                return taken, at_once
            at_once = False

    @precondition(lambda self: self.held)
    @rule(data=st.data(), worker=st.integers(0, 1), count=st.integers(1, 3))
    def settle(self, data: st.DataObject, worker: int, count: int) -> None:
        chosen = data.draw(st.permutations(self.held))[:count]
        settlements = [(claim, data.draw(st.sampled_from(OUTCOMES))) for claim in chosen]
        assert self.run(claims.settle(self.links[worker], settlements)) == []
        for claim, outcome in settlements:
            self.held.remove(claim)
            self.stale.append(claim)
            self.settled(self.jobs[claim.id], outcome)
        for claim, _ in settlements:
            self.open_next(self.jobs[claim.id].group)

    def settled(self, job: Model, outcome: Outcome) -> None:
        match outcome:
            case Finished(state=state):
                job.state, job.attempt = state, job.attempt + 1
            case _ if job.cancel_asked:
                job.state, job.attempt = State.CANCELLED, job.attempt + 1
            case Postponed(delay=delay, charged=charged):
                job.state, job.attempt, job.due = State.PENDING, job.attempt + charged, delay == 0
                job.place = "new" if job.passable else None

    @precondition(lambda self: self.stale)
    @rule(data=st.data(), outcome=st.sampled_from(OUTCOMES))
    def settle_late(self, data: st.DataObject, outcome: Outcome) -> None:
        claim = data.draw(st.sampled_from(self.stale))
        assert self.run(claims.settle(self.links[0], [(claim, outcome)])) == [claim], "a stale claim was settled"
        self.open_next(claim.group)  # nothing is settled, but whoever has the group's lock looks who is next

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        claim = data.draw(st.sampled_from(self.held))
        self.held.remove(claim)
        self.stale.append(claim)
        self.run(
            self.execute("update outbox.live_job set lease_until = now() - interval '1 s' where id = :id", id=claim.id)
        )
        assert self.run(maintenance.rescue(self.links[1])) == 1
        job = self.jobs[claim.id]
        job.lost += 1
        if job.cancel_asked:
            job.state = State.CANCELLED
        elif job.lost >= MAX_LOST:
            job.state = State.FAILED
        else:
            job.state, job.due = State.PENDING, True
        self.open_next(job.group)

    # The operator, and time.

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job = self.jobs[data.draw(st.sampled_from(sorted(self.jobs)))]
        if job.state in TERMINAL:
            with pytest.raises(IllegalTransition):
                self.run(self.steer(control.cancel, job.id))
            return
        self.run(self.steer(control.cancel, job.id))
        if job.state is State.RUNNING:
            job.cancel_asked = True
        else:
            job.state = State.CANCELLED
            self.open_next(job.group)

    @precondition(lambda self: any(job.state in TERMINAL for job in self.jobs.values()))
    @rule(data=st.data())
    def requeue(self, data: st.DataObject) -> None:
        ended = [id for id, job in sorted(self.jobs.items()) if job.state in TERMINAL]
        job = self.jobs[data.draw(st.sampled_from(ended))]
        if job.state is State.SUCCEEDED:
            with pytest.raises(IllegalTransition):
                self.run(self.steer(control.requeue, job.id))
            return
        taken = any((each.task, each.key) == (job.task, job.key) for each in self.live() if job.key is not None)
        if taken:
            with pytest.raises(KeyTaken):
                self.run(self.steer(control.requeue, job.id))
            return
        self.run(self.steer(control.requeue, job.id))
        job.state, job.attempt, job.lost, job.due, job.cancel_asked = State.PENDING, 0, 0, True, False
        job.place = None if job.group is None else "new"

    @rule(paused=st.booleans())
    def pause(self, paused: bool) -> None:
        self.run(self.steer(queue.pause if paused else queue.resume, "default"))
        self.paused = paused

    @rule()
    def let_time_pass(self) -> None:
        # What was to come last is now due first: the order of a group is another one.
        self.run(self.execute(_TIME_PASSES))
        for job in self.live():
            job.due = job.due or job.state is State.PENDING

    # What holds at any time.

    @invariant()
    def the_rows_are_the_model(self) -> None:
        rows = self.run(self.rows("select id, state, fence, attempt, lost, blocked from outbox.job"))
        seen = {row.id: (row.state, row.fence, row.attempt, row.lost, row.blocked) for row in rows}
        meant = {
            job.id: (
                job.state.value,
                job.fence,
                job.attempt,
                job.lost,
                job.place if job.state is State.PENDING else None,
            )
            for job in self.jobs.values()
        }
        assert seen == meant

    @invariant()
    def one_job_of_a_group_is_open(self) -> None:
        for group in ("g", "h"):
            assert sum(job.group == group and job.place is None for job in self.live()) <= 1

    def teardown(self) -> None:
        for session, _ in self.late:
            self.run(self._end(session, commits=False))

    # The model's own arithmetic.

    def live(self) -> Iterator[Model]:
        return iter([job for job in self.jobs.values() if job.state not in TERMINAL])

    def claimable(self, task: str) -> list[UUID]:
        if self.paused:
            return []
        return [
            job.id
            for job in self.live()
            if job.task == task and job.state is State.PENDING and job.due and job.place is None
        ]

    def open_next(self, group: str | None) -> None:
        if group is None:
            return
        members = sorted((job for job in self.live() if job.group == group), key=lambda job: job.id)
        if any(job.place is None for job in members):
            return
        for job in members:
            if not job.passable or job.due:
                job.place = None
                return

    # How it talks to the database.

    def run(self, doing: Any) -> Any:
        return self.runner.run(doing)

    async def execute(self, statement: str, **values: Any) -> None:
        async with self.engine.begin() as connection:
            await connection.execute(text(statement), values)

    async def rows(self, statement: str) -> Any:
        async with self.engine.connect() as connection:
            return (await connection.execute(text(statement))).all()

    async def steer(self, verb: Any, what: object) -> None:
        async with AsyncSession(self.engine) as session, session.begin():
            await verb(session, what)


@pytest.mark.timeout(MANY * 10)
@pytest.mark.parametrize("examples", [A_FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=["a few", "many"])
def test_every_history_is_what_the_model_says(
    database_url: str, monkeypatch: pytest.MonkeyPatch, examples: int
) -> None:
    monkeypatch.setattr(marks, "PATIENCE", timedelta(seconds=0.02))
    with asyncio.Runner() as runner:
        Queue.runner = runner
        Queue.engine = create_async_engine(database_url, poolclass=NullPool)
        Queue.links = [Link(database_url, WorkerSettings(), f"worker {n}") for n in range(2)]
        try:
            run_state_machine_as_test(
                Queue,
                settings=settings(
                    max_examples=examples,
                    stateful_step_count=STEPS,
                    deadline=None,
                    database=None,
                    print_blob=True,
                    suppress_health_check=list(HealthCheck),
                    phases=[Phase.explicit, Phase.generate, Phase.shrink],
                ),
            )
        finally:
            for link in Queue.links:
                runner.run(link.close())
            with suppress(Exception):
                runner.run(Queue.engine.dispose())
