"""The page of queues: how they stand, and what may be said of them."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import Response
from sqlalchemy.ext.asyncio import AsyncSession

from outbox import audit, limit, queue, statistic
from outbox.dashboard.forms import Form, back, form
from outbox.dashboard.render import page, site
from outbox.dashboard.route import PageRoute
from outbox.fastapi.access import Principal
from outbox.fastapi.api import Api
from outbox.limit import Limit


def area(api: Api) -> APIRouter:
    """The routes."""
    router = APIRouter(prefix="/queues", route_class=PageRoute, include_in_schema=False)
    Session = Annotated[AsyncSession, api.session]  # noqa: N806 - types, here and below
    Overseer = Annotated[Principal, api.overseer]  # noqa: N806
    Manager = Annotated[Principal, api.manager]  # noqa: N806

    @router.get("")
    async def show_queues(request: Request, session: Session, who: Overseer) -> Response:
        now = datetime.now(UTC)
        depths: dict[str, list[int]] = {}
        for each in await statistic.backlog(session, now - timedelta(hours=1), now):
            depths.setdefault(each.queue, []).append(each.ready)
        states, rules = await queue.states(session), await limit.rules(session)
        return page(request, "queues", who, queues=states, most=queue.MOST, depths=depths, limits=rules)

    @router.post("/{action}")
    async def change_queue(
        request: Request, session: Session, who: Manager, action: str, sent: Annotated[Form, Depends(form)]
    ) -> Response:
        try:
            said = await _change(session, action, sent.get("name"), sent)
        except ValueError as exc:
            raise HTTPException(422, str(exc)) from exc
        await audit.write(session, who.name, action, f"queue {sent.get('name')}", **said)
        return back(request, sent, site(request).at("queues"), said=action)

    return router


async def _change(session: AsyncSession, action: str, name: str, sent: Form) -> dict[str, Any]:
    """Do it, and answer what the audit keeps of it."""
    match action:
        case "pause":
            await queue.pause(session, name)
        case "resume":
            await queue.resume(session, name)
        case "ceiling":
            ceiling = sent.number("ceiling")
            await queue.set_ceiling(session, name, ceiling)
            return {"ceiling": ceiling}
        case "limit":
            concurrency = sent.number("concurrency")
            await _limit(session, name, concurrency)
            return {"concurrency": concurrency}
        case _:
            raise HTTPException(404, "There is no such action.")
    return {}


async def _limit(session: AsyncSession, name: str, concurrency: int | None) -> None:
    """Say how many run at once; how many start in a second stays as it is."""
    rules = [each for each in await limit.rules(session) if (each.scope, each.name) == ("queue", name)]
    known = next((each.limit for each in rules if not each.per_key), None)
    if known is not None and known.rate is not None:
        await limit.put(session, "queue", name, replace(known, concurrency=concurrency))
    elif concurrency is not None:
        await limit.put(session, "queue", name, Limit(concurrency=concurrency))
    else:
        await limit.remove(session, "queue", name)
