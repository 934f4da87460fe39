"""Which Outbox a command is about: as it is said, or as the project's pyproject.toml says once for all."""

import importlib
import os
import sys
import tomllib
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from outbox.cli.console import fail
from outbox.registry import Outbox

_LIBRARY = Path(__file__).parents[1]

Target = Annotated[
    str | None,
    typer.Argument(
        metavar="[MODULE:NAME]",
        envvar="OUTBOX_APP",
        help="the Outbox object, as in api.handlers:outbox; unless given, what pyproject.toml says",
        show_default=False,
    ),
]


def load(target: str | None) -> Outbox:
    """The Outbox that ``module:name`` names, or that pyproject.toml names.

    Code that cannot be imported ends the command with a line that says where it fails.
    """
    target = named(target)
    module, _, name = target.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        found: Any = getattr(importlib.import_module(module), name)
    except Exception as exc:  # noqa: BLE001 - the code is not ours, and may raise anything
        fail(f"{target!r}: {_why(exc, module)}")
    if not isinstance(found, Outbox):
        fail(f"{target!r}: is a {type(found).__name__}, not an Outbox")
    return found


def named(target: str | None) -> str:
    """Which Outbox is meant, as ``module:name``; nothing is imported."""
    target = target or _configured()
    if target is None:
        fail(
            "say which Outbox: MODULE:NAME, as in api.handlers:outbox, or write into pyproject.toml: "
            '[tool.outbox] app = "api.handlers:outbox"'
        )
    module, _, name = target.partition(":")
    if not module or not name:
        fail(f"{target!r}: write MODULE:NAME, as in api.handlers:outbox")
    return target


def _why(exc: Exception, module: str) -> str:
    if isinstance(exc, ModuleNotFoundError) and exc.name and f"{module}.".startswith(f"{exc.name}."):
        return f"{exc}; run the command in the folder that holds {module.partition('.')[0]!r}"
    if isinstance(exc, SyntaxError):
        return f"{_shown(exc.filename)}:{exc.lineno}: {type(exc).__name__}: {exc.msg}"
    frames = traceback.extract_tb(exc.__traceback__)
    # What people can mend is in their own files, not in the library that has raised it.
    own = [frame for frame in frames if _is_own(frame.filename)]
    place = f"{_shown(own[-1].filename)}:{own[-1].lineno}: " if own else ""
    return f"{place}{type(exc).__name__}: {exc}"


def _is_own(filename: str) -> bool:
    path = Path(filename)
    return path.is_relative_to(Path.cwd()) and not path.is_relative_to(_LIBRARY) and "site-packages" not in path.parts


def _shown(filename: str | None) -> str:
    path = Path(filename or "?")
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _configured() -> str | None:
    try:
        said: Any = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["outbox"]["app"]
    except (OSError, KeyError, TypeError):
        return None
    except UnicodeDecodeError as exc:
        fail(f"pyproject.toml: {exc}")
    except tomllib.TOMLDecodeError as exc:
        fail(f"pyproject.toml: {exc}")
    if not isinstance(said, str):
        fail('pyproject.toml: [tool.outbox] app must be a string, as in "api.handlers:outbox"')
    return said
