"""What people look at in a browser: how things are, what needs somebody, and what can be done about it.

    app.include_router(outbox_dashboard(outbox, sessions, access=api_keys(sessions)))

The same rights, refusals and audit as the HTTP API. Nothing comes from another host.
"""

from fastapi import APIRouter
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from outbox.dashboard import assets, batches, entry, jobs, live, operating, overview, queues, schedules
from outbox.fastapi.access import Access, KeyAccess, local_only
from outbox.fastapi.api import Api
from outbox.registry import Outbox

__all__ = ["outbox_dashboard"]


def outbox_dashboard(
    outbox: Outbox,
    sessions: async_sessionmaker[AsyncSession],
    *,
    access: Access = local_only,
    prefix: str = "/outbox",
    trace_url: str | None = None,
) -> APIRouter:
    """The dashboard as a router, to be included in an application in one line.

    :param outbox: the declared tasks, whose names the filter bar proposes.
    :param access: a dependency of FastAPI that answers who asks, a ``Principal``. With ``api_keys`` people log in with
        a key. Unless given, only this machine itself is answered.
    :param prefix: of all paths; not empty.
    :param trace_url: where a trace is shown, as in ``https://traces.example.com/trace/{trace_id}``; a job's page then
        leads there.
    :raises ValueError: if that is no such address.
    """
    if trace_url is not None and not (trace_url.startswith(("https://", "http://")) and "{trace_id}" in trace_url):
        raise ValueError(f"trace_url: {trace_url!r}; must start with https:// and have {{trace_id}} in it")
    api = Api(outbox, sessions, access)
    router = APIRouter(lifespan=api.lifespan)
    router.include_router(assets.area(), prefix=prefix)
    if isinstance(access, KeyAccess):
        router.include_router(entry.area(access), prefix=prefix)
    router.include_router(jobs.area(api, trace_url), prefix=prefix)
    for each in (overview, queues, schedules, batches, operating, live):
        router.include_router(each.area(api), prefix=prefix)
    return router
