"""``outbox dev``, as a developer runs it: real processes, real files that change."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from outbox.job import Job
from tests.factories import plant, read
from tests.waiting import eventually, until

ROOT = Path(__file__).parents[2]

HANDLERS = """
from outbox import Outbox

outbox = Outbox()


@outbox.task(queue="mail", retry=1)
async def greet(name: str) -> str:
    return f"hello {name}"
"""


class Dev:
    """One ``outbox dev`` in a folder, with everything it says in a file."""

    def __init__(self, folder: Path, url: str, *options: str) -> None:
        self.handlers = folder / "shop.py"
        self._log = folder / "dev.log"
        if not self.handlers.exists():
            self.handlers.write_text(HANDLERS)
        with self._log.open("wb") as log:
            self.process = psutil.Popen(
                [sys.executable, "-m", "outbox", "dev", "shop:outbox", *options],
                cwd=folder,
                env={
                    **os.environ,
                    "PYTHONPATH": str(ROOT),
                    "PYTHONDONTWRITEBYTECODE": "",  # as developers have it
                    "COLUMNS": "200",
                    "DATABASE_URL": url,
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def said(self) -> str:
        """All that it has said."""
        return self._log.read_text()

    async def says(self, what: str, *, times: int = 1) -> None:
        """Return once it has said this."""

        def holds() -> bool:
            if self.said().count(what) >= times:
                return True
            assert self.process.poll() is None, self.said()
            return False

        await until(holds)

    async def leaves(self) -> int:
        """Its exit status, when it is gone."""
        await until(lambda: self.process.poll() is not None)
        return int(self.process.returncode)

    def change(self, old: str, new: str) -> None:
        """Change the file of handlers, as an editor does, and as if within the same moment: its time stays."""
        draft, before = self.handlers.with_suffix(".draft"), self.handlers.stat()
        draft.write_text(self.handlers.read_text().replace(old, new))
        os.utime(draft, ns=(before.st_atime_ns, before.st_mtime_ns))
        draft.replace(self.handlers)

    def end(self) -> None:
        """Kill whatever is left."""
        if self.process.poll() is None:
            for each in [*self.process.children(recursive=True), self.process]:
                each.kill()
            self.process.wait()


Start = Callable[..., Dev]


@pytest.fixture
def dev(tmp_path: Path, database_url: str) -> Iterator[Start]:
    """Starts one."""
    started: list[Dev] = []

    def start(*options: str, url: str = database_url) -> Dev:
        started.append(Dev(tmp_path, url, *options))
        return started[-1]

    yield start
    for each in started:
        each.end()


async def ended(engine: AsyncEngine, **columns: Any) -> Job:
    """A job of these columns, after it has run."""
    id = await plant(engine, task="greet", queue="mail", payload={"name": "Ada"}, **columns)

    async def job() -> Job | None:
        found = await read(engine, id)
        return found if found.done else None

    found = await eventually(job)
    assert found is not None
    return found


async def test_a_changed_file_is_what_the_next_job_runs(dev: Start, engine: AsyncEngine) -> None:
    running = dev()
    await running.says("ready: 1 tasks; queues mail:5")
    first = await ended(engine)
    assert first.result == "hello Ada"
    await running.says("✓ greet succeeded in")
    assert f"→ greet  {first.id}" in running.said()
    # As many characters, and the same time: an old .pyc would pass for it.
    running.change("hello", "howdy")
    await running.says("ready", times=2)
    assert "shop.py changed" in running.said()
    assert (await ended(engine)).result == "howdy Ada"


@pytest.mark.slow
async def test_a_file_with_an_error_is_said_and_the_next_change_is_waited_for(dev: Start, engine: AsyncEngine) -> None:
    running = dev()
    await running.says("ready")
    running.change("async def", "async deaf")
    await running.says("the next change starts it again")
    assert "shop.py:8: SyntaxError" in running.said()
    running.change("async deaf", "async def")
    running.change("queue=", "cue=")
    await running.says("the next change starts it again", times=2)
    assert "shop.py:7: TypeError" in running.said()
    assert "Traceback" not in running.said()
    running.change("cue=", "queue=")
    await running.says("ready", times=2)
    assert (await ended(engine)).result == "hello Ada"


async def test_a_failure_is_shown_with_its_place_and_steers_no_terminal(dev: Start, engine: AsyncEngine) -> None:
    (running := dev()).change("return", r"raise ValueError('\x1b[31m [red]') #")
    await running.says("ready")
    job = await ended(engine)
    await running.says("greet failed at attempt 1 in")
    await running.says("shop.py")
    said = running.said()
    assert r"ValueError: \x1b[31m [red]" in said
    assert "\x1b" not in said
    assert job.errors[-1]["message"] == "\x1b[31m [red]"


@pytest.mark.slow
async def test_a_job_that_runs_on_is_handed_back_and_runs_with_the_new_code(dev: Start, engine: AsyncEngine) -> None:
    (running := dev("--grace", "0")).change("return", "await __import__('asyncio').sleep(3600)\n    return")
    await running.says("ready")
    id = await plant(engine, task="greet", queue="mail", payload={"name": "Ada"})
    await running.says(f"→ greet  {id}")
    running.change("3600", "0")

    async def done() -> bool:
        return (await read(engine, id)).done

    await eventually(done)
    job = await read(engine, id)
    assert (job.result, job.attempt) == ("hello Ada", 1)
    assert "← greet handed back after" in running.said()


async def test_ctrl_c_stops_it_in_good_order(dev: Start, engine: AsyncEngine) -> None:
    running = dev()
    await running.says("ready")
    [worker] = running.process.children()
    running.process.send_signal(signal.SIGINT)
    assert await running.leaves() == 0
    assert not worker.is_running()
    assert "Traceback" not in running.said()


@pytest.mark.slow
async def test_a_worker_does_not_outlive_the_one_that_restarts_it(dev: Start, engine: AsyncEngine) -> None:
    running = dev()
    await running.says("ready")
    [worker] = running.process.children()
    running.process.kill()
    try:
        await until(lambda: not worker.is_running())
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.kill()


async def test_without_the_schema_it_says_what_to_do(dev: Start, postgres_url: str) -> None:
    running = dev(url=postgres_url)
    assert await running.leaves() == 78
    assert "outbox migrate" in running.said()
    assert "Traceback" not in running.said()


async def test_what_cannot_be_mended_in_a_file_ends_it(dev: Start, tmp_path: Path) -> None:
    running = dev(url="mysql")
    assert await running.leaves() == 78
    assert "database URL" in running.said()


async def test_without_the_library_that_watches_it_says_what_to_install(dev: Start, tmp_path: Path) -> None:
    (tmp_path / "watchfiles.py").write_text("raise ImportError")
    running = dev()
    assert await running.leaves() == 78
    assert 'pip install "outbox[dev]"' in running.said()


async def test_lines_of_json_and_queues_of_ones_own(dev: Start, engine: AsyncEngine, tmp_path: Path) -> None:
    (tmp_path / "watchfiles.py").write_text("raise ImportError")  # not needed then
    running = dev("--no-reload", "--json", "-q", "other:3", "--slots", "2")
    await running.says('"ready"')
    job = await ended(engine)
    await running.says('"ended"')
    running.process.send_signal(signal.SIGTERM)
    assert await running.leaves() == 0
    said = [json.loads(line) for line in running.said().splitlines()]
    assert said[0]["queues"] == {"mail": 2, "other": 3}
    [started] = [each for each in said if each["event"] == "started"]
    [over] = [each for each in said if each["event"] == "ended"]
    assert (started["job_id"], over["outcome"]) == (str(job.id), "succeeded")
