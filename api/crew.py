"""The processes of the service on one machine: started together, watched, and stopped together.

Each runs in a process group of its own, so that a Ctrl-C reaches only this process, which stops the others in order.
Should this process be killed, on Linux the others are told to stop all the same.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

ROOT: Final = Path(__file__).resolve().parents[1]
HOST: Final = "127.0.0.1"

LEASH: Final = (
    "import ctypes, os, sys; "
    "ctypes.CDLL(None).prctl(1, 15); "  # PR_SET_PDEATHSIG, SIGTERM
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)


class Failure(Exception):
    """Something did not work; the text says what, and what to do. ``code`` is for the shell."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


class Stopped(Exception):
    """Somebody wants everything to stop."""


def say(line: str = "") -> None:
    """Print a line; if nobody reads any more, stop."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        signal.raise_signal(signal.SIGTERM)


@dataclass(eq=False)
class Member:
    """One process of the crew. ``lines`` are what it has printed, unless it prints to our own output."""

    name: str
    process: asyncio.subprocess.Process
    may_end: bool
    silent: bool
    lines: asyncio.Queue[str] = field(default_factory=asyncio.Queue)

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self.process.pid

    async def ended(self) -> int:
        """Pass on what it prints until it ends; its exit status."""
        if self.process.stdout is not None:
            while line := await self.process.stdout.readline():
                text = line.decode(errors="replace").rstrip()
                if not self.silent:
                    say(f"{self.name:>10} | {text}")
                self.lines.put_nowait(text)
        return await self.process.wait()

    def signal(self, number: int) -> None:
        """Send a signal, unless the process is gone."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)


class Crew:
    """Processes that live and end together. Leaving the context stops them, the last started first.

    :param environment: what they get beside this process's own environment, which has the last word.
    :param patience: seconds that one may take to stop before it is killed.
    """

    def __init__(self, environment: Mapping[str, str], *, patience: float) -> None:
        self._environment = {**environment, **os.environ, "PYTHONUNBUFFERED": "1"}
        self._patience = patience
        self._members: dict[Member, asyncio.Task[int]] = {}
        self._alarm: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        self._leaving = False

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._asked_to_stop)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._leaving = True
        for member, ending in reversed(self._members.items()):
            await self._end(member, ending)

    async def start(
        self, name: str, *arguments: str, plain: bool = False, may_end: bool = False, silent: bool = False
    ) -> Member:
        """Start ``python`` with these arguments.

        :param plain: what it prints goes to our own output as it is, not line by line with its name before it.
        :param may_end: its end is no accident.
        :param silent: what it prints is kept for who asks, and not passed on.
        """
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *(["-c", LEASH] if sys.platform == "linux" else []),
            *arguments,
            cwd=ROOT,
            env=self._environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=None if plain else asyncio.subprocess.PIPE,
            stderr=None if plain else asyncio.subprocess.STDOUT,
            limit=16 * 1024 * 1024,
            process_group=0,
        )
        member = Member(name, process, may_end, silent)
        self._members[member] = asyncio.create_task(self._attend(member))
        return member

    async def run(self, name: str, *arguments: str, hint: str) -> list[str]:
        """Run ``python`` with these arguments to its end, and return what it printed.

        :raises Failure: if it does not succeed, with what it printed last and the hint.
        """
        member = await self.start(name, *arguments, may_end=True, silent=True)
        code = await asyncio.shield(self._members[member])
        lines = [member.lines.get_nowait() for _ in range(member.lines.qsize())]
        if code != 0:
            raise Failure("\n".join([*lines[-20:], "", f"The {name} failed. {hint}"]))
        return lines

    async def play(self, scene: Coroutine[Any, Any, None]) -> None:
        """Play a scene to its end.

        :raises Stopped: when somebody asks for it.
        :raises Failure: when a process ends by itself, or the scene fails.
        """
        playing = asyncio.create_task(scene)
        try:
            first: set[asyncio.Future[Any]] = {playing, self._alarm}
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            if self._alarm.done():
                raise self._alarm.result()
            playing.result()
        finally:
            playing.cancel()
            await asyncio.gather(playing, return_exceptions=True)

    async def _attend(self, member: Member) -> int:
        code = await member.ended()
        if not (member.may_end or self._leaving or self._alarm.done()):
            self._alarm.set_result(Failure(_how_it_ended(member, code), code if code > 0 else 1))
        return code

    async def _end(self, member: Member, ending: asyncio.Task[int]) -> None:
        member.signal(signal.SIGTERM)
        done, _ = await asyncio.wait({ending}, timeout=self._patience)
        if not done:
            say(f"{member.name} (process {member.pid}) did not stop within {self._patience:g} s: killed")
            member.signal(signal.SIGKILL)
            await ending

    def _asked_to_stop(self) -> None:
        if self._alarm.done():  # asked once more: the worker leaves its grace period
            for member in self._members:
                member.signal(signal.SIGTERM)
        else:
            self._alarm.set_result(Stopped())


def _how_it_ended(member: Member, code: int) -> str:
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
    return f"{member.name} (process {member.pid}) {how}; its last words stand above. Everything else is stopped."


def free_port(wanted: int, what: str) -> int:
    """This port, or the next free one above it."""
    for port in range(wanted, wanted + 200):
        if not _taken(port):
            if port != wanted:
                say(f"port {wanted} is taken: {what} gets {port}")
            return port
    raise Failure(f"no free port for {what} from {wanted} to {wanted + 199}: stop something, or set another PORT")


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        if probe.connect_ex((HOST, port)) == 0:
            return True
    try:
        socket.create_server((HOST, port)).close()
    except OSError:
        return True
    return False
