"""The stream on which open pages hear that they should look again."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, HTTPException
from fastapi.sse import EventSourceResponse, ServerSentEvent

from outbox.fastapi.access import Principal
from outbox.fastapi.api import Api, found
from outbox.watch import WatchClosed

RECHECK = 5.0
"""Seconds after which a page that hears nothing is told so, and whether its reader may read is asked again."""

STREAMS = 1000
"""Pages at most that one process tells."""


def area(api: Api) -> APIRouter:
    """The route."""
    router = APIRouter(include_in_schema=False)
    Reader = Annotated[Principal, api.reader]  # noqa: N806 - a type
    streams = 0

    async def opened(who: Reader, job: UUID | None = None) -> AsyncIterator[tuple[Principal, UUID | None]]:
        """Refuse before the stream begins what can be refused, and count it until it has ended."""
        nonlocal streams
        if streams >= STREAMS:
            raise HTTPException(503, "Too many pages are open.", headers={"Retry-After": "10"})
        streams += 1
        try:
            if job is not None:
                async with api.sessions() as session:
                    await found(session, job, who)
            yield who, job
        finally:
            streams -= 1

    @router.get("/live", response_class=EventSourceResponse)
    async def tell(
        asked: Annotated[tuple[Principal, UUID | None], Depends(opened)],
    ) -> AsyncIterator[ServerSentEvent]:
        """`changed` whenever the page should look again, because of one job or of anything; else `beat`."""
        who, job = asked
        async for event in _events(api, who, job):
            yield ServerSentEvent(event=event, retry=2000, raw_data=event)

    return router


async def _events(api: Api, who: Principal, job: UUID | None) -> AsyncIterator[str]:
    """As long as the reader may read and the process is not stopping."""
    async with api.pulse.listening() if job is None else api.watch.waiting_for(job) as heard:
        while True:
            try:
                async with asyncio.timeout(RECHECK):
                    await heard.next()
            except TimeoutError:
                if not await who.is_still_good():
                    return
                yield "beat"
            except WatchClosed:
                return
            else:
                yield "changed"
