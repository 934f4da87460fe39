"""The metrics of queues and workers in an application, for those who have a key."""

from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from outbox import Outbox
from outbox.fastapi import api_keys
from outbox.fastapi.metrics import outbox_metrics


def app_with_metrics(outbox: Outbox, sessions: async_sessionmaker[AsyncSession]) -> FastAPI:
    app = FastAPI()
    app.include_router(outbox_metrics(outbox, sessions, access=api_keys(sessions)))
    return app
