"""Which Outbox a command is about: as it is said, or as the project's pyproject.toml says once for all."""

import importlib
import os
import sys
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from outbox.cli.console import fail
from outbox.registry import Outbox

Target = Annotated[
    str | None,
    typer.Argument(
        metavar="[MODULE:NAME]",
        envvar="OUTBOX_APP",
        help="the Outbox object, as in api.handlers:outbox; unless given, [tool.outbox] app in pyproject.toml",
        show_default=False,
    ),
]


def load(target: str | None) -> Outbox:
    """The Outbox that ``module:name`` names, or that pyproject.toml names."""
    target = target or _configured()
    if target is None:
        fail(
            "say which Outbox: MODULE:NAME, as in api.handlers:outbox, or write into pyproject.toml: "
            '[tool.outbox] app = "api.handlers:outbox"'
        )
    module, _, name = target.partition(":")
    if not module or not name:
        fail(f"{target!r}: write MODULE:NAME, as in api.handlers:outbox")
    sys.path.insert(0, os.getcwd())
    try:
        found: Any = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as exc:
        fail(f"{target!r}: {exc}; run the command in the folder that holds {module.partition('.')[0]!r}")
    except AttributeError as exc:
        fail(f"{target!r}: {exc}")
    if not isinstance(found, Outbox):
        fail(f"{target!r}: is a {type(found).__name__}, not an Outbox")
    return found


def _configured() -> str | None:
    try:
        said: Any = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["outbox"]["app"]
    except (OSError, KeyError, TypeError):
        return None
    except tomllib.TOMLDecodeError as exc:
        fail(f"pyproject.toml: {exc}")
    if not isinstance(said, str):
        fail('pyproject.toml: [tool.outbox] app must be a string, as in "api.handlers:outbox"')
    return said
