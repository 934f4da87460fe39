"""Schedules over HTTP."""

from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from sqlalchemy.ext.asyncio import AsyncSession

from outbox import audit, schedule
from outbox.errors import ScheduleNotFound
from outbox.fastapi.access import Principal, responses_of
from outbox.fastapi.api import Api
from outbox.fastapi.filters import NewName
from outbox.fastapi.route import GuardedRoute
from outbox.fastapi.views import JobReference, accepted
from outbox.keys import Scope
from outbox.registry import Outbox
from outbox.schedule import CatchUp, Schedule, Scheduled

UPCOMING = 5


class ScheduleIn(BaseModel):
    """What to enqueue again and again, and when."""

    model_config = {"extra": "forbid"}

    task: str = Field(max_length=200)
    arguments: dict[str, Any] = {}
    cron: str = Field(max_length=200, description="As cron writes it: '30 9 * * MON-FRI', or @daily and the like.")
    tz: str = Field("UTC", max_length=100, description="The time zone that it is meant in, as in Europe/Berlin.")
    catch_up: CatchUp = Field("latest", description="Of the ticks that were missed, which are made up for.")
    jitter: float = Field(0.0, ge=0, le=86_400, description="Each job is put off by a random part of so many seconds.")
    queue: str | None = Field(None, max_length=200, description="Another queue than the task's.")


class ScheduleView(BaseModel):
    """A schedule as it stands."""

    name: str
    task: str
    arguments: dict[str, Any] | None = Field(None, description="Null without the scope read:payload.")
    cron: str
    tz: str
    catch_up: CatchUp
    jitter: float
    queue: str
    declared: bool = Field(description="Whether code says so, or a person, whom no code overrules.")
    paused_at: datetime | None
    last_at: datetime | None = Field(description="The latest tick that it has fired for.")
    upcoming: list[datetime] = Field(description="When it fires next, in UTC; nothing while it is paused.")


class SchedulePage(BaseModel):
    """All schedules, by name."""

    data: list[ScheduleView]


def area(api: Api) -> APIRouter:
    """The routes. Schedules are nobody's in particular: a tenant's key does not open them."""
    router = APIRouter(prefix="/schedules", tags=["schedules"], route_class=GuardedRoute)
    Session = Annotated[AsyncSession, api.session]  # noqa: N806 - types, here and below
    Reader = Annotated[Principal, api.overseer]  # noqa: N806
    Operator = Annotated[Principal, api.manager]  # noqa: N806

    @router.get("", operation_id="schedules_list", responses=responses_of())
    async def list_schedules(session: Session, who: Reader) -> SchedulePage:
        """All schedules, by name."""
        return SchedulePage(data=[_view(each, who) for each in await schedule.all_of_them(session)])

    @router.get("/{name}", operation_id="schedules_get", responses=responses_of(404, 422))
    async def get_schedule(session: Session, who: Reader, name: NewName) -> ScheduleView:
        """One schedule, with the next moments at which it fires."""
        return await _current(session, name, who)

    @router.put("/{name}", operation_id="schedules_put", responses=responses_of(422))
    async def put_schedule(session: Session, who: Operator, name: NewName, body: ScheduleIn) -> ScheduleView:
        """Create a schedule or change it. It then stands above what code declares, until it is deleted."""
        await schedule.put(session, _schedule(api.outbox, name, body))
        await audit.write(session, who.name, "put", f"schedule {name}", cron=body.cron, tz=body.tz, task=body.task)
        return await _current(session, name, who)

    @router.delete("/{name}", status_code=204, operation_id="schedules_delete", responses=responses_of(404, 422))
    async def delete_schedule(session: Session, who: Operator, name: NewName) -> None:
        """Delete a schedule. One that code declares is back when a worker starts: pause it instead."""
        await schedule.delete(session, name)
        await audit.write(session, who.name, "delete", f"schedule {name}")

    @router.post("/{name}/pause", operation_id="schedules_pause", responses=responses_of(404, 422))
    async def pause_schedule(session: Session, who: Operator, name: NewName) -> ScheduleView:
        """Have it fire no more until it is resumed."""
        await schedule.pause(session, name)
        await audit.write(session, who.name, "pause", f"schedule {name}")
        return await _current(session, name, who)

    @router.post("/{name}/resume", operation_id="schedules_resume", responses=responses_of(404, 422))
    async def resume_schedule(session: Session, who: Operator, name: NewName) -> ScheduleView:
        """Have it fire again from now on. What it would have fired for meanwhile is not made up for."""
        await schedule.resume(session, name)
        await audit.write(session, who.name, "resume", f"schedule {name}")
        return await _current(session, name, who)

    @router.post("/{name}/fire", status_code=202, operation_id="schedules_fire", responses=responses_of(404, 422))
    async def fire_schedule(
        session: Session, who: Operator, request: Request, response: Response, name: NewName
    ) -> JobReference:
        """Enqueue its job now, paused or not."""
        await audit.write(session, who.name, "fire", f"schedule {name}")
        return accepted(request, response, await schedule.fire(session, name))[0]

    return router


def _schedule(outbox: Outbox, name: str, body: ScheduleIn) -> Schedule:
    if body.task not in outbox:
        raise _invalid("task", "this service knows no such task")
    task = outbox[body.task]
    try:
        given = task if body.queue is None else task.options(queue=body.queue)
        return Schedule(
            name=name,
            job=given.job(**body.arguments),
            cron=body.cron,
            tz=body.tz,
            catch_up=body.catch_up,
            jitter=body.jitter,
        )
    except ValueError as exc:
        field, _, reason = str(exc).partition(":")
        raise _invalid(field.split()[0], reason.strip()) from exc


def _invalid(field: str, reason: str) -> RequestValidationError:
    return RequestValidationError([{"type": "value_error", "loc": ("body", field), "msg": reason, "input": None}])


async def _current(session: AsyncSession, name: str, who: Principal) -> ScheduleView:
    found = await schedule.get(session, name)
    if found is None:
        raise ScheduleNotFound(name)
    return _view(found, who)


def _view(found: Scheduled, who: Principal) -> ScheduleView:
    arguments = found.payload if who.may(Scope.READ_PAYLOAD) else None
    values = asdict(found) | {"arguments": arguments, "upcoming": found.upcoming(UPCOMING)}
    return ScheduleView(**{field: values[field] for field in ScheduleView.model_fields})
