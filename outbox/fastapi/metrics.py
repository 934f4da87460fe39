"""How queues and workers stand, for Prometheus: one look at the database every few seconds, however many ask.

Needs ``outbox[prometheus]``, and is imported by name. What a worker does it tells by itself: ``--metrics-port``.
"""

import asyncio
import time
from collections.abc import Iterable
from typing import Annotated

from fastapi import APIRouter, Depends, Response
from fastapi.responses import PlainTextResponse
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from outbox import figures, status
from outbox.exposition import CONTENT_TYPE, ServiceCollector, encode
from outbox.fastapi.access import Access, Principal, local_only, requires, responses_of
from outbox.fastapi.api import PATIENCE
from outbox.fastapi.route import GuardedRoute
from outbox.keys import Scope
from outbox.registry import Outbox

FRESH = 5.0
"""Seconds for which a look at the database is good."""


def outbox_metrics(
    outbox: Outbox, sessions: async_sessionmaker[AsyncSession], *, access: Access = local_only
) -> APIRouter:
    """``GET /metrics``, to be included in an application in one line.

    :param outbox: the declared tasks, whose queues are told of even while nothing is in them.
    :param access: a dependency of FastAPI that answers who asks, a ``Principal``; they need the scope ``read`` and no
        tenant. Unless given, only this machine itself is answered.
    """
    look = Look(sessions, sorted({task.defaults.queue for task in outbox}))
    router = APIRouter(tags=["metrics"], route_class=GuardedRoute)
    Overseer = Annotated[Principal, Depends(requires(access, Scope.READ, of_all=True))]  # noqa: N806 - a type

    @router.get("/metrics", operation_id="metrics_get", response_class=PlainTextResponse, responses=responses_of())
    async def get_metrics(who: Overseer) -> Response:
        """How queues and workers stand, for Prometheus."""
        return Response(encode(await look.latest()), media_type=CONTENT_TYPE)

    return router


class Look:
    """What was seen in the database a few seconds ago at most; whoever asks meanwhile waits for the same look."""

    def __init__(self, sessions: async_sessionmaker[AsyncSession], declared: Iterable[str]) -> None:
        self._sessions = sessions
        self._names = figures.Names(declared)
        self._looking = asyncio.Lock()
        self._seen = ServiceCollector({}, {})
        self._good_until = 0.0

    async def latest(self) -> ServiceCollector:
        """What was seen last, or a new look if that is too old."""
        async with self._looking:
            if time.monotonic() >= self._good_until:
                self._seen = await self._look()
                self._good_until = time.monotonic() + FRESH
            return self._seen

    async def _look(self) -> ServiceCollector:
        async with self._sessions() as session, session.begin():
            await status.read_by_index(session, patience=PATIENCE)
            names = await self._names.update(session)
            return ServiceCollector(await figures.queues(session, names), await figures.workers(session))
