"""Ask for jobs and steer them: the library's router, in this service's unit of work and with its errors."""

from api.database import get_session
from outbox.fastapi import status_router

router = status_router(session=get_session)
