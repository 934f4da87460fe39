"""Ask for jobs, batches and schedules and steer them: the library's routers, in this service's unit of work."""

from fastapi import APIRouter

from api.database import get_session
from api.handlers import outbox
from outbox.fastapi import batches_router, schedules_router, status_router

router = APIRouter()
router.include_router(status_router(session=get_session))
router.include_router(batches_router(session=get_session))
router.include_router(schedules_router(session=get_session, outbox=outbox))
