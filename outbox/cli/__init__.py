"""The command line. The only package that reads the environment: every option is a variable too, as --help says.

    outbox worker           run jobs until stopped
    outbox dev              the same for developers: restarts when a file changes, and shows every attempt
    outbox jobs             ls, show, explain, retry, cancel, discard, run-now
    outbox queues           ls, pause, resume
    outbox schedules        ls, pause, resume, fire
    outbox workers          which are up
    outbox stats            how it goes; --watch stays
    outbox doctor           what is wrong, and what to do about it
    outbox check            would this code run the jobs that wait?
    outbox migrate          bring the database's schema to this release
    outbox keys             create, ls, revoke
    outbox openapi          the HTTP API as OpenAPI

Exit status: 0 done; 1 refused, nothing was changed, or problems were found; 2 a wrong option; 75 a worker left handlers
behind; 78 something must be mended first: the address, the schema, what a worker is to run; 130 Ctrl-C.
"""

import io
import sys
from typing import Any

import typer
from typer.core import TyperGroup, TyperOption
from typer.main import get_command

from outbox.cli import database, dev, jobs, keys, openapi, queues, stats, worker

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # panels cut the names of options and variables off where the terminal is narrow
)
app.command("worker")(worker.worker)
app.command("dev")(dev.dev)
app.add_typer(jobs.app, name="jobs")
app.add_typer(queues.queues, name="queues")
app.add_typer(queues.schedules, name="schedules")
app.command("workers")(queues.list_workers)
app.command("stats")(stats.stats)
app.command("doctor")(database.doctor)
app.command("check")(database.check)
app.command("migrate")(database.migrate)
app.add_typer(keys.app, name="keys")
app.command("openapi")(openapi.openapi)


@app.callback()
def outbox() -> None:
    """A durable job queue in Postgres: jobs are written in the same transaction as business data."""


def command() -> TyperGroup:
    """All commands, each of their options with a variable in the environment.

    It is named after the option as people write it: ``--json`` of ``outbox jobs ls`` is ``OUTBOX_JOBS_LS_JSON``.
    """
    made = get_command(app)
    assert isinstance(made, TyperGroup)
    _name_variables(made, "OUTBOX")
    return made


def _name_variables(command: Any, prefix: str) -> None:
    for parameter in command.params:
        if isinstance(parameter, TyperOption) and parameter.envvar is None:
            longest = max(parameter.opts, key=len)
            parameter.envvar = f"{prefix}_{longest.lstrip('-').replace('-', '_').upper()}"
    for name, each in getattr(command, "commands", {}).items():
        _name_variables(each, f"{prefix}_{name.replace('-', '_').upper()}")


def main() -> None:
    """The entry point of the ``outbox`` command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a mark that a terminal does not know ends no command
    command()()
