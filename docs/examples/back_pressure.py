"""No more than ten thousand mails may wait; who signs up then is asked to come back."""

from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncSession

from outbox import Outbox, queue
from outbox.fastapi import problem_handlers

outbox = Outbox()
app = FastAPI()
problem_handlers(app)  # QueueFull becomes 503, with Retry-After


@outbox.task(queue="mail")
async def send_welcome(email: str) -> None: ...


async def set_up(session: AsyncSession) -> None:
    await queue.set_ceiling(session, "mail", 10_000)
