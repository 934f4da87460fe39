"""Ask for jobs, batches and schedules and steer them: the library's API, on this service's database."""

from fastapi import APIRouter

from api.database import sessions
from api.handlers import outbox
from api.settings import get_settings
from outbox.fastapi import api_keys, local_only, outbox_router


def router() -> APIRouter:
    """The routes, for those whom the settings name."""
    access = {"local": local_only, "keys": api_keys(sessions)}[get_settings().outbox_access]
    return outbox_router(outbox, sessions, access=access, prefix="")
