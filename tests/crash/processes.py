"""Real worker processes: started from the command line, told what to do by signals, read by their log."""

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from tests.crash import handlers
from tests.crash.database import PATIENCE, Database
from tests.waiting import until

ROOT = Path(__file__).parents[2]

LEASE = 2
"""Seconds. Short, so that what takes a lease takes no longer than a test may."""

_EVENT = re.compile(r"^\S+ \S+ \w+ +outbox (\w+) ?(.*)$", re.MULTILINE)


class WorkerProcess:
    """One ``python -m outbox worker``, with everything it says in a file."""

    def __init__(self, name: str, database: Database, folder: Path, options: list[str], *, port: int | None) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        environment = {
            handlers.LOG: str(database.log),
            handlers.GATES: str(database.gates),
            handlers.WORKER: name,
            "DATABASE_URL": database.url_for(name, port=port),
        }
        command = [sys.executable, "-m", "outbox", "worker", "tests.crash.handlers:outbox", *options]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process is still there."""
        return self._process.poll() is None

    def must_live(self) -> None:
        """Fail the test with its last words if the process is gone."""
        assert self.alive, f"{self.name} ended with {self._process.returncode}:\n{self.said()[-5000:]}"

    @property
    def id(self) -> str:
        """The worker's id, once it has started."""
        return next(fields["worker_id"] for name, fields in self.events() if name == "worker_started")

    def send(self, number: int) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._process.kill()
        self._process.wait()

    def said(self) -> str:
        """All of its log."""
        return self.log.read_text(errors="replace")

    def events(self) -> list[tuple[str, dict[str, str]]]:
        """The events in its log: name and fields."""
        return [
            (name, dict(re.findall(r"(\w+)=('[^']*'|\S+)", fields))) for name, fields in _EVENT.findall(self.said())
        ]

    def reported(self, event: str, **fields: object) -> int:
        """How often it has reported this event with these fields."""
        return sum(
            name == event and all(given.get(key) == str(value) for key, value in fields.items())
            for name, given in self.events()
        )

    async def reports(self, event: str, *, times: int = 1, **fields: object) -> None:
        """Return when it has reported this event."""

        def holds() -> bool:
            count = self.reported(event, **fields)
            if count < times:
                self.must_live()
            return count >= times

        await until(holds, within=PATIENCE)

    async def leaves(self) -> int:
        """Its exit status, when it is gone."""
        await until(lambda: not self.alive, within=PATIENCE)
        return int(self._process.returncode)

    def threads(self) -> int:
        """How many threads it has."""
        return len(list(Path(f"/proc/{self.pid}/task").iterdir()))

    def cpu_seconds(self) -> float:
        """How much processor time it has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Crew:
    """The worker processes of a test."""

    def __init__(self, database: Database, folder: Path) -> None:
        self._database = database
        self._folder = folder
        self.all: list[WorkerProcess] = []

    def start(
        self, *, queue: str = "default", slots: int = 4, grace: float = 30, port: int | None = None
    ) -> WorkerProcess:
        """Start one more, without waiting for it."""
        name = f"worker{len(self.all) + 1}"
        options = ["-q", f"{queue}:{slots}", "--lease", str(LEASE), "--grace", str(grace)]
        worker = WorkerProcess(name, self._database, self._folder, options, port=port)
        self.all.append(worker)
        return worker

    async def started(self, **options: Any) -> WorkerProcess:
        """Start one more, and return it when it works."""
        worker = self.start(**options)
        await worker.reports("worker_started")
        return worker

    @property
    def alive(self) -> list[WorkerProcess]:
        """Those that are there now."""
        return [worker for worker in self.all if worker.alive]

    async def in_the_middle(self, worker: WorkerProcess) -> None:
        """Return when handlers run in the worker."""
        await worker.reports("worker_started")

        def runs() -> bool:
            worker.must_live()
            balance = Counter(run.what for run in self._database.runs() if run.worker == worker.name)
            return balance["start"] > balance["end"] + balance["broken off"]

        await until(runs, within=PATIENCE)

    async def is_rid_of(self, worker: WorkerProcess) -> bool:
        """Whether no running job is the worker's."""
        running = "select count(*) from outbox.live_job where state = 'running' and worker_id = $1::text::uuid"
        return not await self._database.value(running, worker.id)

    def end(self) -> None:
        """Kill whatever is left."""
        for worker in self.alive:
            worker.send(signal.SIGCONT)
            worker.kill()
