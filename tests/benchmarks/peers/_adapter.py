"""What every adapter needs and no peer has. Standard library only: the environments of the peers import it."""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

WARM_UP = 20
"""Single jobs before those that are measured: the first few warm connections and plans."""

POLL = 0.5
"""Seconds between two looks into a store that writes down when a job was done: a look costs the peer a little."""

Result = dict[str, float | int | str]


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    command: str
    url: str
    jobs: int
    workers: int
    pause: float
    kind: str = "drain"
    """Of a worker process: what it works for, drain or latency."""


def url() -> str:
    """The address of the store: of the command line, and in worker processes of the environment."""
    if "PEER_URL" in os.environ:
        return os.environ["PEER_URL"]
    return sys.argv[sys.argv.index("--url") + 1] if "--url" in sys.argv else ""


def main(
    drain: Callable[[Options], Result],
    latency: Callable[[Options], Result],
    worker: Callable[[Options], None] | None = None,
) -> None:
    """Do what the command line asks for and print the result as one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["drain", "latency", "worker"])
    parser.add_argument("--url", required=True)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--pause", type=float, default=0.05)
    parser.add_argument("--kind", default="drain")
    options = Options(**vars(parser.parse_args()))
    if options.command == "latency":
        options = replace(options, workers=1, kind="latency")
    if options.command == "worker" and worker is not None:
        worker(options)
        return
    with tempfile.TemporaryDirectory(prefix="peer-") as marks:
        os.environ |= {"PEER_MARKS": marks, "PEER_URL": options.url}
        result = drain(options) if options.command == "drain" else latency(options)
    print(json.dumps(result), flush=True)


# ------------------------------------------------------------------------------------------------ in worker processes

_started = False
_stamps: int | None = None


def started() -> None:
    """Note when the first handler of this process starts; all the later calls return at once."""
    global _started  # noqa: PLW0603 - one flag of a process, read by every job
    if not _started:
        _started = True
        Path(os.environ["PEER_MARKS"], f"{os.getpid()}.started").write_text(repr(time.time()))


def stamp(n: int, moment: float) -> None:
    """Note when the handler of one job started."""
    global _stamps  # noqa: PLW0603 - one file of a process
    if _stamps is None:
        _stamps = os.open(Path(os.environ["PEER_MARKS"], f"{os.getpid()}.stamps"), os.O_CREAT | os.O_WRONLY)
    os.write(_stamps, f"{n} {moment!r}\n".encode())


def at_the_gate(options: Options) -> None:
    """Wait until every worker process has come as far as this, so that none works alone while others still load."""
    marks = Path(os.environ["PEER_MARKS"])
    (marks / f"{os.getpid()}.ready").touch()
    while len(list(marks.glob("*.ready"))) < options.workers:
        time.sleep(0.002)


# ------------------------------------------------------------------------------------------------------ in the adapter


@contextmanager
def workers(
    commands: list[list[str]], environment: Mapping[str, str] | None = None
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Worker processes, until the end of the block. What they print goes to our stderr."""
    with ExitStack() as stack:
        running = []
        for command in commands:
            process = subprocess.Popen(command, stdout=sys.stderr, env={**os.environ, **(environment or {})})
            stack.callback(_stop, process)
            running.append(process)
        yield running
        for process in running:
            process.terminate()


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def same_program(options: Options) -> list[str]:
    """The command of a worker process that is this adapter too."""
    module = sys.modules["__main__"].__spec__
    assert module is not None
    shape = [
        "--url",
        options.url,
        "--jobs",
        str(options.jobs),
        "--workers",
        str(options.workers),
        "--kind",
        options.kind,
    ]
    return [sys.executable, "-P", "-m", module.name, "worker", *shape]


async def until(
    done: Callable[[], Awaitable[bool]], running: list[subprocess.Popen[bytes]], every: float = POLL
) -> float:
    """Ask until the answer is yes, and tell when it was; fail if a worker has died."""
    while not await done():
        moment = time.time()
        for process in running:
            if process.poll() is not None:
                raise RuntimeError(f"a worker ended with {process.returncode}")
        await asyncio.sleep(max(0.0, every - (time.time() - moment)))
    return time.time()


def first_start() -> float:
    """When the first of all handlers started."""
    return min(float(file.read_text()) for file in Path(os.environ["PEER_MARKS"]).glob("*.started"))


def drained(options: Options, enqueuing: float, finished: float, settings: str, package: str) -> Result:
    """The result of a drain that took ``enqueuing`` seconds to enqueue and was over at ``finished``."""
    return {
        "jobs_per_second": round(options.jobs / (finished - first_start()), 1),
        "enqueue_per_second": round(options.jobs / enqueuing, 1),
        "jobs": options.jobs,
        "workers": options.workers,
        "settings": settings,
        "version": metadata.version(package),
    }


async def singles(
    options: Options, enqueue: Callable[[int], Awaitable[float]], running: list[subprocess.Popen[bytes]]
) -> list[float]:
    """Enqueue one job at a time; milliseconds from the moments that ``enqueue`` gives to the starts of the handlers."""
    committed: dict[int, float] = {}
    for n in range(-WARM_UP, options.jobs):
        if n == 0:  # the worker is up when the warm jobs are through
            await asyncio.wait_for(until(lambda: _came(WARM_UP), running), 60)
        committed[n] = await enqueue(n)
        await asyncio.sleep(options.pause)
    await asyncio.wait_for(until(lambda: _came(len(committed)), running), 60)
    # A handler may be there before the enqueuing process has noticed that its own commit is through: that is no wait.
    return [max(0.0, moment - committed[n]) * 1000 for n, moment in _stamped().items() if n >= 0]


async def _came(count: int) -> bool:
    return len(_stamped()) >= count


def _stamped() -> dict[int, float]:
    found: dict[int, float] = {}
    for file in Path(os.environ["PEER_MARKS"]).glob("*.stamps"):
        for line in file.read_text().splitlines():
            n, moment = line.split()
            found.setdefault(int(n), float(moment))
    return found


def waited(options: Options, waits: list[float], settings: str, package: str) -> Result:
    """The result of a latency run."""
    return {
        "p50": round(statistics.median(waits), 3),
        "p99": round(statistics.quantiles(waits, n=100)[98], 3),
        "mean": round(statistics.fmean(waits), 3),
        "max": round(max(waits), 3),
        "jobs": options.jobs,
        "pause": options.pause,
        "settings": settings,
        "version": metadata.version(package),
    }
