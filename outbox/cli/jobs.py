"""``outbox jobs``: find jobs, look at them, and do to one or many what a person may do."""

import getpass
import json
import time
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any
from uuid import UUID

import typer
from rich.progress import Progress
from sqlalchemy.ext.asyncio import AsyncSession

from outbox import audit, control, status
from outbox import explain as explaining
from outbox.cli.console import (
    EXIT_INTERRUPTED,
    EXIT_REFUSED,
    EXIT_USAGE,
    AsJson,
    DatabaseUrl,
    ago,
    ask,
    err,
    fail,
    say,
    show,
    table,
    uninterrupted,
)
from outbox.control import Action, Change
from outbox.errors import JobNotFound
from outbox.job import Job, State
from outbox.status import JobFilter

app = typer.Typer(no_args_is_help=True, help="Find jobs, look at them, retry, cancel and discard them.")

PORTION = 500
"""Jobs that are changed in one transaction."""

PACE = 0.05
"""Seconds between two portions, in which workers get their turn."""

Id = Annotated[UUID, typer.Argument(metavar="ID", help="of the job", show_default=False)]
Ids = Annotated[list[UUID] | None, typer.Argument(metavar="[ID]...", help="jobs; or say which with the options")]
States = Annotated[list[State] | None, typer.Option("--state", "-s", help="repeat for several")]
Queues = Annotated[list[str] | None, typer.Option("--queue", "-q", help="repeat for several")]
Tasks = Annotated[list[str] | None, typer.Option("--task", "-t", help="repeat for several")]
Tags = Annotated[list[str] | None, typer.Option("--tag", help="repeat for several")]
Group = Annotated[str | None, typer.Option("--group", help="of this group")]
Key = Annotated[str | None, typer.Option("--key", help="with this unique key")]
Tenant = Annotated[str | None, typer.Option("--tenant", help="of this tenant")]
Arguments = Annotated[str | None, typer.Option("--arguments", metavar="JSON", help='contained: {"order_id": 42}')]
After = Annotated[datetime | None, typer.Option("--after", help="enqueued from then on, UTC")]
Before = Annotated[datetime | None, typer.Option("--before", help="enqueued before then, UTC")]
All = Annotated[bool, typer.Option("--all", help="all that can be, where no option says which")]
DryRun = Annotated[bool, typer.Option("--dry-run", "-n", help="only count them")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="do not ask")]


@app.command("ls")
def list_jobs(
    database_url: DatabaseUrl,
    state: States = None,
    queue: Queues = None,
    task: Tasks = None,
    tag: Tags = None,
    group: Group = None,
    key: Key = None,
    tenant: Tenant = None,
    arguments: Arguments = None,
    after: After = None,
    before: Before = None,
    limit: Annotated[int, typer.Option("--limit", "-l", min=1, max=10_000, help="at most")] = 50,
    as_json: AsJson = False,
) -> None:
    """List jobs, the newest first."""
    wanted = _filter(state, queue, task, tag, group, key, tenant, arguments, after, before)
    jobs = ask(database_url, lambda session: _pages(session, wanted, limit))
    if as_json:
        show([_plain(job) for job in jobs])
        return
    rows = ((job.id, job.task, job.queue, job.state, job.attempt, ago(job.created_at), _note(job)) for job in jobs)
    table(("id", "task", "queue", "state", "attempt", "enqueued", ""), rows, empty="No jobs.")


@app.command("show")
def show_job(id: Id, database_url: DatabaseUrl, as_json: AsJson = False) -> None:
    """Show one job with its arguments, result and errors."""
    job = ask(database_url, lambda session: _one(session, id))
    if as_json:
        show(_plain(job))
        return
    rows = [
        ("task", job.task),
        ("state", job.state),
        ("queue", f"{job.queue}, priority {job.priority}"),
        ("attempts", f"{job.attempt} of {job.max_attempts or 'as the task says'}"),
        ("enqueued", f"{job.created_at:%Y-%m-%d %H:%M:%S} UTC, {ago(job.created_at)}"),
        ("due", f"{job.run_at:%Y-%m-%d %H:%M:%S} UTC, {ago(job.run_at)}"),
        ("started", ago(job.started_at)),
        ("finished", ago(job.finished_at)),
        ("arguments", json.dumps(job.payload, ensure_ascii=False)),
        ("result", json.dumps(job.result, ensure_ascii=False) if job.done else None),
    ]
    rows += [(name, value) for name, value in _more(job) if value]
    table(("job", str(id)), rows, empty="")
    for error in job.errors:
        say(f"\nattempt {error['attempt']}, {error['at']}", style="bold")
        say(f"{error['type']}: {error['message']}", style="red")
        say(error.get("traceback", ""), style="dim")


@app.command("explain")
def explain_job(id: Id, database_url: DatabaseUrl, as_json: AsJson = False) -> None:
    """Say why a job does not run."""
    found = ask(database_url, lambda session: explaining.explain(session, id))
    if as_json:
        show(
            {"ready": found.ready, "ahead": found.ahead, "seconds": found.seconds}
            | {"reasons": [asdict(each) for each in found.reasons]}
        )
        return
    for reason in found.reasons:
        say(reason.text)
        for each in reason.jobs:
            say(f"  {each}")


def _many(action: Action, verb: str, said: str) -> None:
    """Make the command that does this to one job or many."""

    def command(
        database_url: DatabaseUrl,
        ids: Ids = None,
        state: States = None,
        queue: Queues = None,
        task: Tasks = None,
        tag: Tags = None,
        group: Group = None,
        key: Key = None,
        tenant: Tenant = None,
        arguments: Arguments = None,
        after: After = None,
        before: Before = None,
        everything: All = False,
        dry_run: DryRun = False,
        yes: Yes = False,
        as_json: AsJson = False,
    ) -> None:
        wanted = _filter(state, queue, task, tag, group, key, tenant, arguments, after, before)
        if ids:
            change = ask(database_url, lambda session: _change(session, action, ids, dry_run=dry_run))
        else:
            if wanted == JobFilter() and not everything:
                fail("say which jobs: by ids, by options, or --all", EXIT_USAGE)
            change = _in_portions(database_url, action, verb, wanted, dry_run=dry_run, yes=yes or as_json)
        if as_json:
            show(asdict(change) | {"dry_run": dry_run})
        elif dry_run:
            say(f"{change.matched:,} jobs would be {verb}.")
        else:
            say(f"{change.changed:,} jobs {verb}.")
        raise typer.Exit(0 if change.changed or dry_run else EXIT_REFUSED)

    command.__doc__ = said
    app.command(action if action != "run" else "run-now")(command)


_many("retry", "enqueued again", "Run failed and cancelled jobs again, with all their attempts before them.")
_many("cancel", "cancelled or asked to stop", "Cancel jobs that wait, and ask those that run to stop.")
_many("discard", "deleted", "Delete jobs that have ended, with their results and errors.")
_many("run", "due now", "Make jobs that wait for their time due now.")


def _in_portions(
    database_url: str, action: Action, verb: str, wanted: JobFilter, *, dry_run: bool, yes: bool
) -> Change:
    """Portion by portion, each a transaction of its own, so that nobody waits for a long one."""
    counted = ask(database_url, lambda session: _change(session, action, wanted, dry_run=True, limit=control.MANY))
    if dry_run or not counted.matched:
        return counted
    many = f"{counted.matched:,}" + (" or more" if counted.matched >= control.MANY else "")
    if not yes and not typer.confirm(f"{many} jobs will be {verb}. Go on?"):
        raise typer.Exit(EXIT_REFUSED)
    change = Change(0, 0)
    try:
        with Progress(console=err, transient=True, disable=not err.is_terminal) as progress:
            bar = progress.add_task(verb, total=counted.matched)
            while True:
                portion = partial(_change, action=action, wanted=wanted, limit=PORTION, after=change.next)
                with uninterrupted():  # or nobody could say how many were changed
                    done = ask(database_url, portion)
                    change = Change(change.matched + done.matched, change.changed + done.changed, done.next)
                progress.update(bar, advance=done.matched, total=max(counted.matched, change.matched))
                if done.next is None:
                    return change
                time.sleep(PACE)
    except KeyboardInterrupt:
        fail(f"interrupted: {change.changed:,} jobs {verb} by then; say it again to go on", EXIT_INTERRUPTED)


async def _change(
    session: AsyncSession,
    action: Action,
    wanted: JobFilter | list[UUID],
    *,
    dry_run: bool = False,
    limit: int = control.MANY,
    after: UUID | None = None,
) -> Change:
    await status.read_by_index(session)
    change = await control.change_many(session, action, wanted, limit=limit, after=after, dry_run=dry_run)
    if change.changed and not dry_run:
        await audit.write(session, actor(), action, "jobs", changed=change.changed)
    return change


def actor() -> str:
    """Who sits at the command line, for the audit."""
    return f"{getpass.getuser()} (command line)"


async def _pages(session: AsyncSession, wanted: JobFilter, limit: int) -> list[Job]:
    await status.read_by_index(session)
    jobs: list[Job] = []
    before = None
    while len(jobs) < limit:
        page = await status.page(session, wanted, limit=min(limit - len(jobs), status.MAX_PAGE), before=before)
        jobs += page.jobs
        if (before := page.next) is None:
            break
    return jobs


async def _one(session: AsyncSession, id: UUID) -> Job:
    job = await status.get(session, id)
    if job is None:
        raise JobNotFound(id)
    return job


def _filter(
    states: list[State] | None,
    queues: list[str] | None,
    tasks: list[str] | None,
    tags: list[str] | None,
    group: str | None,
    key: str | None,
    tenant: str | None,
    arguments: str | None,
    after: datetime | None,
    before: datetime | None,
) -> JobFilter:
    try:
        contained = json.loads(arguments) if arguments else {}
    except ValueError as exc:
        fail(f"--arguments: {exc}", EXIT_USAGE)
    if not isinstance(contained, dict):
        fail("--arguments: must be a JSON object", EXIT_USAGE)
    return JobFilter(
        states=states or (),
        queues=queues or (),
        tasks=tasks or (),
        tags=tags or (),
        group=group,
        key=key,
        tenant=tenant,
        arguments=contained,
        created_after=_utc(after),
        created_before=_utc(before),
    )


def _utc(moment: datetime | None) -> datetime | None:
    return moment and (moment if moment.tzinfo else moment.replace(tzinfo=UTC))


def _note(job: Job) -> str:
    if (job.errors and not job.done) or (job.state is State.FAILED and job.errors):
        return f"{job.errors[-1]['type']}: {job.errors[-1]['message']}"[:80]
    if job.progress:
        return f"{job.progress.get('done')} of {job.progress.get('total') or '?'} {job.progress.get('message') or ''}"
    return ""


def _more(job: Job) -> list[tuple[str, Any]]:
    return [
        ("key", job.key),
        ("group", job.group_key),
        ("batch", job.batch_id),
        ("tenant", job.tenant),
        ("tags", ", ".join(job.tags)),
        ("worker", job.worker_id),
        ("trace", job.trace_id),
        ("progress", job.progress),
        ("checkpoint", job.checkpoint),
    ]


def _plain(job: Job) -> dict[str, Any]:
    return asdict(job) | {"done": job.done, "trace_id": job.trace_id}
