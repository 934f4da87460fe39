"""Processes of Python that need no second to start: forked from one that has imported what takes the time."""

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext
from pathlib import Path
from tempfile import TemporaryDirectory

# Nothing that keeps what the environment said when it was imported.
_PRELOADED = ["asyncpg", "fastapi", "outbox", "pydantic", "sqlalchemy.ext.asyncio", "typer", "uvloop", "watchfiles"]
_context: list[ForkServerContext] = []


def context() -> ForkServerContext:
    """Where processes are forked."""
    if not _context:
        context = get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        _context.append(context)
    return _context[0]


async def outbox(
    arguments: Sequence[str], environment: Mapping[str, str], *, cwd: Path, answer: str = ""
) -> tuple[int, str]:
    """Run the command line in a process of its own; its exit status, and what it has printed."""
    return await asyncio.to_thread(_outbox, list(arguments), dict(environment), cwd, answer)


def _outbox(arguments: list[str], environment: dict[str, str], cwd: Path, answer: str) -> tuple[int, str]:
    with TemporaryDirectory() as folder:
        given, printed = Path(folder, "given"), Path(folder, "printed")
        given.write_text(answer)
        child = context().Process(target=_run, args=(arguments, environment, cwd, given, printed))
        child.start()
        child.join(60)
        assert child.exitcode is not None, f"{arguments}: still runs"
        return child.exitcode, printed.read_bytes().decode()


def _run(arguments: list[str], environment: dict[str, str], cwd: Path, given: Path, printed: Path) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for path, flags, numbers in ((given, os.O_RDONLY, (0,)), (printed, os.O_WRONLY | os.O_CREAT, (1, 2))):
        file = os.open(path, flags)
        for number in numbers:
            os.dup2(file, number)
    sys.stdin = os.fdopen(0, "r")
    sys.path[0:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    sys.argv = ["outbox", *arguments]
    from outbox.cli import main

    main()
