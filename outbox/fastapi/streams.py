"""A job as it changes, as server-sent events."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Header, HTTPException, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent

from outbox.fastapi.access import Principal, responses_of
from outbox.fastapi.api import Api
from outbox.fastapi.jobs import encoded, read
from outbox.fastapi.route import GuardedRoute
from outbox.fastapi.views import view
from outbox.job import Job
from outbox.watch import Waiter, WatchClosed

RECHECK = 5.0
"""Seconds after which a stream asks again whether its reader may read."""

STREAMS = 10_000
"""Streams at most that one process serves."""


def area(api: Api) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["jobs"], route_class=GuardedRoute)
    Reader = Annotated[Principal, api.reader]  # noqa: N806 - a type
    streams = 0

    async def streamed(
        request: Request,
        who: Reader,
        job_id: UUID,
        last_event_id: Annotated[str | None, Header(description="The id of the last event that you have.")] = None,
    ) -> AsyncIterator[tuple[Principal, str | None]]:
        """Refuse before the stream begins what can be refused, and count it until it has ended."""
        nonlocal streams
        if streams >= STREAMS:
            raise HTTPException(503, "Too many streams are open.", headers={"Retry-After": "10"})
        streams += 1
        try:
            job, etag, _ = await read(api, request, who, job_id)
            if job.done and last_event_id == etag:
                raise HTTPException(410, "It has ended, and you have heard of it.")
            yield who, last_event_id
        finally:
            streams -= 1

    @router.get(
        "/jobs/{job_id}/events",
        operation_id="jobs_events",
        response_class=EventSourceResponse,
        responses=responses_of(404, 410, 422),
    )
    async def stream_job(
        request: Request, job_id: UUID, opened: Annotated[tuple[Principal, str | None], Depends(streamed)]
    ) -> AsyncIterator[ServerSentEvent]:
        """The job as it changes, as server-sent events `job`, until `done`; changes in quick succession may be one."""
        who, heard = opened
        async with api.watch.waiting_for(job_id) as waiter:
            async for job in _changes(waiter, who):
                if job is None:
                    yield ServerSentEvent(event="gone", data={"id": str(job_id)})
                    return
                etag, body = encoded(view(request, job, who))
                if etag != heard or job.done:
                    heard = etag
                    event = "done" if job.done else "job"
                    yield ServerSentEvent(event=event, id=etag, retry=2000, raw_data=body.decode())
                if job.done:
                    return

    return router


async def _changes(waiter: Waiter, who: Principal) -> AsyncIterator[Job | None]:
    """The job whenever it has changed, as long as its reader may read and the process is not stopping."""
    while True:
        try:
            async with asyncio.timeout(RECHECK):
                job = await waiter.next()
        except TimeoutError:
            if not await who.is_still_good():
                return
            continue
        except WatchClosed:
            return
        yield job
