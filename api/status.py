"""Ask for jobs, batches and schedules and steer them: the library's API and dashboard, on this service's database."""

from api.database import sessions
from api.handlers import outbox
from outbox.dashboard import outbox_dashboard
from outbox.fastapi import outbox_router

router = outbox_router(outbox, sessions, prefix="")
dashboard = outbox_dashboard(outbox, sessions)
