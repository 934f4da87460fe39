"""The application, which ``python -m api`` serves. Wires, decides nothing."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache

from fastapi import FastAPI
from fastapi.routing import APIRoute
from opentelemetry.sdk.trace import TracerProvider

from api import health, imports, mailings, orders, payments, reports, signups, status
from api.database import engine
from api.limits import BodyLimit
from api.settings import Settings, configure
from outbox.fastapi import problem_handlers
from outbox.wakeup import Notifier

MAX_BODY = 1024 * 1024


def create_app(settings: Settings | None = None) -> FastAPI:
    """The service, with the given settings or those of the environment."""
    if settings is not None:
        configure(settings)
    app = FastAPI(
        title="Shop",
        summary="Orders, sign-ups, reports and imports whose background work survives crashes.",
        lifespan=_lifespan,
        generate_unique_id_function=_operation_id,
        telemetry={"tracer_provider": _tracer_provider()},
    )
    problem_handlers(app)
    app.add_middleware(BodyLimit, default=MAX_BODY, paths={"/v1/imports": imports.MAX_UPLOAD})
    app.include_router(health.router)
    for area in (signups, orders, reports, imports, mailings, payments):
        app.include_router(area.router, prefix="/v1")
    access = status.access()
    app.include_router(status.router(access), prefix="/v1")
    app.include_router(status.dashboard(access))
    app.include_router(status.metrics(access))
    return app


@cache
def _tracer_provider() -> TracerProvider:
    """Makes every request a trace, which its jobs carry along. With FASTAPI_OTEL_AUTO_CONFIGURE it is exported, too."""
    return TracerProvider()


@asynccontextmanager
async def _lifespan(_app: FastAPI) -> AsyncIterator[None]:
    used = engine()
    async with Notifier(used):
        yield
    await used.dispose()


def _operation_id(route: APIRoute) -> str:
    return f"{route.tags[0]}-{route.name}" if route.tags else route.name
