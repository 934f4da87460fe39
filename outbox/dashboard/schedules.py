"""The page of schedules: when they fire, in plain words, and what became of it."""

from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import Response
from sqlalchemy.ext.asyncio import AsyncSession

from outbox import audit, schedule
from outbox.dashboard.forms import Form, back, form
from outbox.dashboard.render import page, site
from outbox.dashboard.route import PageRoute
from outbox.fastapi.access import Principal
from outbox.fastapi.api import Api
from outbox.schedule import Tick

TICKS = 24
"""Of each schedule so many of its last jobs are shown."""


def area(api: Api) -> APIRouter:
    """The routes."""
    router = APIRouter(prefix="/schedules", route_class=PageRoute, include_in_schema=False)
    Session = Annotated[AsyncSession, api.session]  # noqa: N806 - types, here and below
    Overseer = Annotated[Principal, api.overseer]  # noqa: N806
    Manager = Annotated[Principal, api.manager]  # noqa: N806

    @router.get("")
    async def show_schedules(request: Request, session: Session, who: Overseer) -> Response:
        ticks: dict[str, list[Tick]] = {}
        for tick in await schedule.history(session, each=TICKS):
            ticks.setdefault(tick.schedule, []).append(tick)
        return page(request, "schedules", who, schedules=await schedule.all_of_them(session), ticks=ticks)

    @router.post("/{action}")
    async def change_schedule(
        request: Request, session: Session, who: Manager, action: str, sent: Annotated[Form, Depends(form)]
    ) -> Response:
        name, where = sent.get("name"), site(request).at("schedules")
        match action:
            case "pause":
                await schedule.pause(session, name)
            case "resume":
                await schedule.resume(session, name)
            case "fire":
                where = site(request).at("jobs", (await schedule.fire(session, name)).id)
            case _:
                raise HTTPException(404, "There is no such action.")
        await audit.write(session, who.name, action, f"schedule {name}")
        return back(request, sent, where, said=action)

    return router
