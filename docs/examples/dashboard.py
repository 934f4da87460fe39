"""The dashboard for those who have a key."""

from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from outbox import Outbox
from outbox.dashboard import outbox_dashboard
from outbox.fastapi import api_keys


def app_with_dashboard(outbox: Outbox, sessions: async_sessionmaker[AsyncSession]) -> FastAPI:
    app = FastAPI()
    app.include_router(outbox_dashboard(outbox, sessions, access=api_keys(sessions)))
    return app
