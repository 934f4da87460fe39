"""The whole HTTP API as one router, to be included in an application in one line."""

from collections.abc import Sequence

from fastapi import APIRouter
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from outbox.fastapi import batches, door, health, jobs, operations, queues, schedules, statistics, streams, workers
from outbox.fastapi.access import Access, local_only
from outbox.fastapi.api import Api, Area
from outbox.registry import Outbox

AREAS: Sequence[Area] = (
    jobs.area,
    streams.area,
    door.area,
    operations.area,
    batches.area,
    queues.area,
    schedules.area,
    workers.area,
    statistics.area,
    health.area,
)


def outbox_router(
    outbox: Outbox,
    sessions: async_sessionmaker[AsyncSession],
    *,
    access: Access = local_only,
    prefix: str = "/v1",
) -> APIRouter:
    """The API of jobs, queues, schedules, batches and workers:

        app.include_router(outbox_router(outbox, sessions, access=api_keys(sessions)))

    :param outbox: the declared tasks, against which arguments are checked.
    :param access: a dependency of FastAPI that answers who asks, a ``Principal``. Unless given, only this machine
        itself is answered.
    :param prefix: of all paths.
    """
    api = Api(outbox, sessions, access)
    router = APIRouter(prefix=prefix, lifespan=api.lifespan)
    for area in AREAS:
        router.include_router(area(api))
    return router
