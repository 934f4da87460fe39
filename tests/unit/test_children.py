"""Handlers in child processes, without a database: real processes, killed for real."""

import asyncio
import contextlib
import importlib
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from outbox import INJECTED, JobContext, Outbox, State
from outbox.children import Children, address
from outbox.context import Claim, Stop
from outbox.errors import DeclarationError
from outbox.message import ORDER, Order
from outbox.outcome import RELEASED, Finished, Outcome, Postponed
from tests import factories, isolated
from tests.waiting import until


@pytest.fixture
async def children() -> AsyncIterator[Children]:
    children = Children(isolated.outbox, 100)
    yield children
    await children.end()


def claim(task: str, **arguments: Any) -> Claim:
    return factories.held(factories.new_id(), task=task, payload=json.dumps(arguments), attempt=2, max_attempts=3)


async def run(children: Children, task: str, **arguments: Any) -> Outcome:
    return await children.run(isolated.outbox[task], claim(task, **arguments))


async def result(children: Children, task: str, **arguments: Any) -> Any:
    outcome = await run(children, task, **arguments)
    assert isinstance(outcome, Finished), outcome
    assert (outcome.state, outcome.error) == (State.SUCCEEDED, None)
    return None if outcome.result is None else json.loads(outcome.result)


def failure(outcome: Outcome) -> tuple[str, str]:
    assert outcome.error is not None
    return outcome.error.type, outcome.error.message


_others: set[int] = set()


@pytest.fixture(autouse=True)
def among_others() -> None:
    """Other tests may have left processes that are to stay."""
    _others.clear()
    _others.update(process.pid for process in psutil.Process().children())


def mine() -> set[int]:
    """The processes that this one has started in this test, and theirs."""
    started = [process for process in psutil.Process().children() if process.pid not in _others]
    found = {process.pid for process in started}
    for process in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            found |= {each.pid for each in process.children(recursive=True)}
    return found


def is_gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


# Running.


async def test_a_handler_runs_in_the_main_thread_of_a_session_of_its_own(children: Children) -> None:
    assert await result(children, "where") == [True, True, os.getpid(), ""]


async def test_arguments_and_results_are_those_of_the_signature(children: Children) -> None:
    of = str(factories.new_id())
    assert await result(children, "receipt", number=7, of=of) == {"number": 7, "of": of}
    assert await result(children, "large", size=20_000) == "\ufffdé\n" * 20_000
    assert failure(await run(children, "receipt", number="x", of=of))[0] == "outbox.errors.PayloadInvalid"


async def test_a_result_that_is_too_large_is_a_success_all_the_same(children: Children) -> None:
    outcome = await run(children, "large", size=200_000)
    assert isinstance(outcome, Finished)
    assert outcome.state is State.SUCCEEDED
    assert failure(outcome)[0] == "outbox.errors.ResultNotStored"


async def test_dependencies_are_opened_in_a_loop_that_the_handler_is_not_in(children: Children) -> None:
    assert await result(children, "with_dependency") == ["of thread outbox-pipe", "MainThread"]
    assert await result(children, "runs_a_loop") == "ran"


async def test_the_context_tells_the_job_and_hears_the_handler(children: Children) -> None:
    held = claim("says")
    held.checkpoint = '{"at": 0}'
    outcome = await children.run(isolated.outbox["says"], held)
    assert isinstance(outcome, Finished)
    assert json.loads(outcome.result or "") == [str(held.id), "says", 2, 3, 1, {"at": 0}, {"at": 1}, False]
    assert json.loads(held.progress or "") == {"done": 1, "total": 4, "message": "quarter"}
    assert held.kept == '{"at":1}'


async def test_what_a_handler_prints_and_logs_is_seen_in_the_workers_output(
    children: Children, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    for _ in range(2):
        await run(children, "prints", text="seen")
    captured = capfd.readouterr()
    assert captured.out == "seen\nseen\n"
    assert captured.err.count("WARNING tests.isolated logged") == 2


async def test_the_log_level_is_the_workers(children: Children, capfd: pytest.CaptureFixture[str]) -> None:
    root, level = logging.getLogger(), logging.getLogger().level
    root.setLevel(logging.ERROR)
    try:
        await run(children, "prints", text="seen")
    finally:
        root.setLevel(level)
    assert "logged" not in capfd.readouterr().err


# Ending.


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        ("ValueError", "ValueError"),
        ("CancelledError", "outbox.errors.UnexpectedCancel"),
        ("StopIteration", "RuntimeError"),  # as Python says it of a coroutine
    ],
)
async def test_an_exception_is_retried(children: Children, how: str, kind: str) -> None:
    outcome = await run(children, "fails", how=how)
    assert isinstance(outcome, Postponed)
    assert (outcome.delay, outcome.charged) == (5, True)
    assert failure(outcome)[0] == kind
    assert outcome.error is not None
    assert "raise RAISED[how]" in outcome.error.traceback


@pytest.mark.parametrize("how", ["SystemExit", "KeyboardInterrupt", "GeneratorExit", "Odd", "BaseExceptionGroup"])
async def test_an_exit_is_the_handlers_failure_and_the_child_lives_on(children: Children, how: str) -> None:
    before = await result(children, "who")
    outcome = await run(children, "fails", how=how)
    assert isinstance(outcome, Finished)
    assert outcome.state is State.FAILED
    assert failure(outcome)[0].endswith(how)
    assert await result(children, "who") == before


async def test_a_handler_steers_its_job(children: Children) -> None:
    assert await run(children, "snoozes") == Postponed(9)
    waited = await run(children, "fails", how="RetryAfter")
    assert isinstance(waited, Postponed)
    assert (waited.delay, waited.charged) == (9, False)
    cancelled = await run(children, "fails", how="Cancel")
    assert isinstance(cancelled, Finished)
    assert cancelled.state is State.CANCELLED


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("exit", "exit status 3"),
        ("segfault", "killed by SIGSEGV"),
        ("killed", "killed by SIGKILL, as by a system that"),
    ],
)
async def test_a_child_that_dies_fails_its_attempt_and_nothing_else(children: Children, how: str, said: str) -> None:
    outcome = await run(children, "dies", how=how)
    assert isinstance(outcome, Postponed)
    assert outcome.charged
    kind, message = failure(outcome)
    assert kind == "outbox.errors.ChildDied"
    assert said in message
    assert mine() == set()
    assert await result(children, "who") != os.getpid()


async def test_what_a_dead_child_has_started_is_killed(children: Children, tmp_path: Path) -> None:
    told = tmp_path / "told"
    await run(children, "leaves_a_process_behind", told=str(told))
    await until(lambda: is_gone(int(told.read_text())))


async def test_a_dead_child_is_noticed_though_a_fork_of_it_holds_the_pipe(children: Children, tmp_path: Path) -> None:
    told = tmp_path / "told"
    outcome = await run(children, "leaves_a_fork_behind", told=str(told))
    fork = int(told.read_text())
    assert not is_gone(fork)
    os.kill(fork, signal.SIGKILL)
    assert "exit status 3" in failure(outcome)[1]


@pytest.mark.parametrize("heard", [True, False], ids=["heard", "unheard"])
async def test_a_child_whose_pipe_is_closed_ends_in_the_middle_of_its_job(tmp_path: Path, heard: bool) -> None:
    # As when the worker has died, where the system does not tell the child of that.
    told, go = tmp_path / "told", tmp_path / "go"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "outbox.child", str(theirs.fileno()), str(os.getpid()), "30", *sys.path),
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
        )
        ours.sendall(ORDER.write(Order("tests.isolated", "gated", claim("gated", told=str(told), go=str(go)))))
        await until(lambda: told.exists() and told.read_text())
        if heard:
            ours.recv(1000)
    assert await asyncio.wait_for(process.wait(), 60) == -signal.SIGKILL


# Keeping and replacing.


async def test_a_child_stays_for_the_next_job_of_any_task(children: Children) -> None:
    assert len({await result(children, "who") for _ in range(5)}) == 1
    assert (await result(children, "takes_without_limit", size=0))[1] == await result(children, "who")


async def test_jobs_that_run_at_once_have_a_child_each(children: Children) -> None:
    pids = await asyncio.gather(*(result(children, "who") for _ in range(3)))
    assert len(set(pids)) == 3
    assert mine() == set(pids)


async def test_after_so_many_jobs_a_fresh_child_takes_its_place() -> None:
    children = Children(isolated.outbox, 2)
    pids = [await result(children, "who") for _ in range(5)]
    assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4]
    await until(lambda: mine() == {pids[4]})
    await children.end()
    assert mine() == set()


async def test_a_child_that_dies_unused_costs_no_attempt(children: Children) -> None:
    pid = await result(children, "who")
    os.kill(pid, signal.SIGKILL)
    assert await result(children, "who") != pid


async def test_a_child_that_is_not_needed_any_more_ends_in_its_own_way(tmp_path: Path) -> None:
    children, told = Children(isolated.outbox, 100), tmp_path / "told"
    await run(children, "says_farewell", told=str(told))
    await children.end()
    assert told.read_text() == "farewell"


# Limits.


@pytest.mark.parametrize("how", isolated.STUBBORN)
async def test_a_handler_beyond_its_limit_is_killed_whatever_it_does(
    children: Children, how: str, tmp_path: Path
) -> None:
    told = tmp_path / "told"
    outcome = await run(children, "stubborn_for_a_moment", how=how, told=str(told))
    assert isinstance(outcome, Postponed)
    assert outcome.charged
    assert failure(outcome) == ("outbox.errors.AttemptTimeout", "ran longer than 1 s")
    assert is_gone(int(told.read_text()))  # by the time the outcome is there, and not a moment later
    await until(lambda: mine() == set())
    await result(children, "who")


@pytest.mark.parametrize("how", ["spins", "sleeps"])
async def test_the_soft_limit_lets_a_handler_clean_up_and_succeed(children: Children, how: str) -> None:
    assert await result(children, "soft", how=how) == "cleaned up"


async def test_a_handler_that_does_not_catch_the_soft_limit_has_timed_out(children: Children) -> None:
    outcome = await run(children, "soft", how="raises")
    assert failure(outcome) == ("outbox.errors.AttemptTimeout", "ran longer than its soft limit of 0.1 s")
    assert outcome.error is not None
    assert "time.sleep(3600)" in outcome.error.traceback


async def test_no_alarm_of_one_job_rings_in_the_next(children: Children) -> None:
    assert await result(children, "not_soft") > 2000
    assert await result(children, "alarm") == 0


async def test_too_much_memory_is_an_error_and_the_next_job_has_all_of_it(children: Children) -> None:
    before = await result(children, "who")
    outcome = await run(children, "takes", size=isolated.MEMORY)
    assert isinstance(outcome, Postponed)
    assert failure(outcome)[0] == "MemoryError"
    assert await result(children, "who") != before  # what it has left is little, and in pieces
    assert await result(children, "takes", size=isolated.MEMORY // 2) == isolated.MEMORY // 2
    assert (await result(children, "takes_without_limit", size=isolated.MEMORY))[0] == isolated.MEMORY


# Being stopped.


@pytest.mark.parametrize("how", isolated.STUBBORN)
@pytest.mark.parametrize(
    ("why", "expected"),
    [
        (Stop.CANCELLED, Finished(State.CANCELLED)),
        pytest.param(Stop.SHUTDOWN, RELEASED, marks=pytest.mark.slow),  # what differs is tested without a process, too
        pytest.param(Stop.LEASE_LOST, RELEASED, marks=pytest.mark.slow),
    ],
)
async def test_a_stopped_handler_is_killed_and_ends_as_its_stop_says(
    children: Children, tmp_path: Path, how: str, why: Stop, expected: Outcome
) -> None:
    told = tmp_path / "told"
    held = claim("stubborn", how=how, told=str(told))
    running = asyncio.create_task(children.run(isolated.outbox["stubborn"], held))
    await until(lambda: told.exists() and told.read_text())
    held.stop = why
    running.cancel()
    assert await running == expected
    assert is_gone(int(told.read_text()))
    await until(lambda: mine() == set())


@pytest.mark.parametrize("ticks", range(8))
async def test_a_stop_while_the_child_starts_leaves_nothing_behind(children: Children, ticks: int) -> None:
    held = claim("who")
    running = asyncio.create_task(children.run(isolated.outbox["who"], held))
    for _ in range(ticks):
        await asyncio.sleep(0)
    held.stop = Stop.CANCELLED
    running.cancel()
    await asyncio.wait({running})
    await until(lambda: mine() == set())
    if ticks:  # before that not even its first line has run
        assert running.result() == Finished(State.CANCELLED)


async def test_what_was_stopped_before_it_began_never_runs(children: Children) -> None:
    held = claim("who")
    held.stop = Stop.CANCELLED
    assert await children.run(isolated.outbox["who"], held) == Finished(State.CANCELLED)
    assert mine() == set()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_signals_meant_for_the_worker_do_not_end_its_children(
    children: Children, tmp_path: Path, number: signal.Signals
) -> None:
    told, go = tmp_path / "told", tmp_path / "go"
    running = asyncio.create_task(result(children, "gated", told=str(told), go=str(go)))
    await until(lambda: told.exists() and told.read_text())
    os.kill(int(told.read_text()), number)
    go.touch()
    assert await running == "went"


# Declaring.


ELSEWHERE = """
from outbox import Outbox
outbox = Outbox()

@outbox.task(isolation="process")
def found() -> str:
    return __file__
"""


async def test_a_child_finds_modules_where_the_worker_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "found_elsewhere.py"
    module.write_text(ELSEWHERE)
    monkeypatch.syspath_prepend(tmp_path)
    outbox = importlib.import_module(module.stem).outbox
    children = Children(outbox, 100)
    outcome = await children.run(outbox["found"], claim("found"))
    await children.end()
    assert isinstance(outcome, Finished)
    assert outcome.result == json.dumps(str(module))


def nested() -> Callable[[], Outbox]:
    def declare() -> Outbox:
        outbox = Outbox()

        @outbox.task(isolation="process")
        def hidden(*, ctx: JobContext = INJECTED) -> None: ...

        return outbox

    return declare


def test_a_task_is_found_under_whatever_name_it_has_in_its_module() -> None:
    assert address(isolated.outbox["who"]) == ("tests.isolated", "who")
    assert address(isolated.outbox["renamed"]) == ("tests.isolated", "another_name")


def test_a_task_that_a_fresh_process_would_not_find_is_refused() -> None:
    with pytest.raises(DeclarationError, match="at module level"):
        Children(nested()(), 100)


def test_a_task_of_the_program_itself_is_refused() -> None:
    outbox = nested()()
    outbox["hidden"].handler.__module__ = "__main__"
    with pytest.raises(DeclarationError, match="a module of its own"):
        Children(outbox, 100)
