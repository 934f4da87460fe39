"""``outbox openapi``: the HTTP API as it would be for this Outbox."""

from importlib import import_module
from typing import Annotated, Any

import typer

from outbox.cli.console import fail, show
from outbox.cli.target import Target, load


def openapi(
    target: Target = None,
    _as_json: Annotated[bool, typer.Option("--json", help="nothing else is ever printed")] = True,
) -> None:
    """Print the HTTP API of an Outbox as OpenAPI."""
    outbox = load(target)
    try:
        # By name, for it needs the extra that this command alone needs.
        web: Any = import_module("outbox.fastapi")
        fastapi: Any = import_module("fastapi")
    except ModuleNotFoundError as exc:
        fail(f'{exc}; install "outbox[fastapi]"')
    app = fastapi.FastAPI(title="outbox")
    app.include_router(web.outbox_router(outbox, sessions=None))
    show(app.openapi())
