"""``outbox queues``, ``schedules`` and ``workers``: how they stand, and what a person may say of them."""

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Annotated, TypeVar

import typer
from sqlalchemy.ext.asyncio import AsyncSession

from outbox import audit, presence, queue, schedule
from outbox.cli.console import AsJson, DatabaseUrl, ago, ask, say, show, table
from outbox.cli.jobs import actor

queues = typer.Typer(no_args_is_help=True, help="Look at queues, pause and resume them.")
schedules = typer.Typer(no_args_is_help=True, help="Look at schedules, pause, resume and fire them.")

Name = Annotated[str, typer.Argument(help="as ls shows it", show_default=False)]

T = TypeVar("T")


@queues.command("ls")
def list_queues(database_url: DatabaseUrl, as_json: AsJson = False) -> None:
    """Show how every queue stands."""
    states = ask(database_url, queue.states)
    if as_json:
        show([asdict(each) for each in states])
        return
    rows = (
        (
            each.name,
            "paused" if each.paused_at else "",
            each.ready,
            ago(each.oldest),
            each.scheduled,
            f"{each.running} / {each.slots}",
            f"{each.pace:,.1f}/s",
            each.ceiling,
        )
        for each in states
    )
    columns = ("queue", "", "ready", "oldest", "scheduled", "running / slots", "pace", "ceiling")
    table(columns, rows, empty="No queues: no job, no worker, and nothing said of any.")


@queues.command("pause")
def pause_queue(name: Name, database_url: DatabaseUrl, as_json: AsJson = False) -> None:
    """Have no worker claim its jobs any more; those that run go on."""
    ask(database_url, _said("pause", f"queue {name}", lambda session: queue.pause(session, name)))
    _tell("Queue", name, paused=True, as_json=as_json)


@queues.command("resume")
def resume_queue(name: Name, database_url: DatabaseUrl, as_json: AsJson = False) -> None:
    """Have workers claim its jobs again."""
    ask(database_url, _said("resume", f"queue {name}", lambda session: queue.resume(session, name)))
    _tell("Queue", name, paused=False, as_json=as_json)


@schedules.command("ls")
def list_schedules(database_url: DatabaseUrl, as_json: AsJson = False) -> None:
    """Show all schedules."""
    found = ask(database_url, schedule.all_of_them)
    if as_json:
        show([asdict(each) | {"upcoming": each.upcoming(3)} for each in found])
        return
    rows = (
        (each.name, each.cron, each.tz, each.task, "paused" if each.paused_at else ago(each.next_at), ago(each.last_at))
        for each in found
    )
    table(("schedule", "cron", "time zone", "task", "next", "last"), rows, empty="No schedules.")


@schedules.command("pause")
def pause_schedule(name: Name, database_url: DatabaseUrl, as_json: AsJson = False) -> None:
    """Have it fire no more until it is resumed."""
    ask(database_url, _said("pause", f"schedule {name}", lambda session: schedule.pause(session, name)))
    _tell("Schedule", name, paused=True, as_json=as_json)


@schedules.command("resume")
def resume_schedule(name: Name, database_url: DatabaseUrl, as_json: AsJson = False) -> None:
    """Have it fire again from now on."""
    ask(database_url, _said("resume", f"schedule {name}", lambda session: schedule.resume(session, name)))
    _tell("Schedule", name, paused=False, as_json=as_json)


@schedules.command("fire")
def fire_schedule(name: Name, database_url: DatabaseUrl, as_json: AsJson = False) -> None:
    """Enqueue its job now, paused or not."""
    job = ask(database_url, _said("fire", f"schedule {name}", lambda session: schedule.fire(session, name)))
    if as_json:
        show({"id": job.id})
    else:
        say(f"{job.id}")


def list_workers(database_url: DatabaseUrl, as_json: AsJson = False) -> None:
    """Show which workers are up, and how busy."""
    found = ask(database_url, presence.workers)
    if as_json:
        show([asdict(each) for each in found])
        return
    rows = (
        (
            each.id,
            each.host,
            each.pid,
            "leaving" if each.stopping_at else "up" if each.alive else "gone",
            f"{each.running} / {sum(each.queues.values())}",
            ", ".join(f"{name}:{slots}" for name, slots in each.queues.items()),
            ago(each.started_at),
            ago(each.seen_at),
        )
        for each in found
    )
    columns = ("worker", "host", "pid", "", "running / slots", "queues", "started", "seen")
    table(columns, rows, empty="No worker is up.")


def _tell(kind: str, name: str, *, paused: bool, as_json: bool) -> None:
    if as_json:
        show({"name": name, "paused": paused})
    else:
        say(f"{kind} {name} is {'paused' if paused else 'not paused'}.")


def _said(
    action: str, target: str, do: Callable[[AsyncSession], Awaitable[T]]
) -> Callable[[AsyncSession], Awaitable[T]]:
    """Do it and write down that it was done."""

    async def both(session: AsyncSession) -> T:
        done = await do(session)
        await audit.write(session, actor(), action, target)
        return done

    return both
