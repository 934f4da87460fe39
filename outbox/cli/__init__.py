"""The command line. The only package that reads the environment: every option is a variable too, as --help says.

    outbox worker           run jobs until stopped
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
behind; 78 something must be mended first: the address, the schema, what a worker is to run.
"""

import typer

from outbox.cli import database, jobs, keys, openapi, queues, stats, worker

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"auto_envvar_prefix": "OUTBOX"},
)
app.command("worker")(worker.worker)
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


def main() -> None:
    """The entry point of the ``outbox`` command."""
    app()
