"""Ask for jobs, batches and schedules and steer them: the library's API, on this service's database."""

from api.database import sessions
from api.handlers import outbox
from outbox.fastapi import outbox_router

router = outbox_router(outbox, sessions, prefix="")
