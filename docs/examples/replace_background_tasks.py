"""A durable background task in place of FastAPI's: the README shows this file."""

from typing import Annotated
from uuid import UUID, uuid4

from fastapi import Depends, FastAPI
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from outbox import INJECTED, JobContext, Outbox, Retry
from outbox.fastapi import TaskAdder, outbox_tasks, session_dependency

engine = create_async_engine("postgresql+asyncpg://localhost/shop")
get_session = session_dependency(async_sessionmaker(engine, expire_on_commit=False))
SessionDep = Annotated[AsyncSession, Depends(get_session, scope="function")]  # commits before the response
OutboxTasks = Annotated[TaskAdder, Depends(outbox_tasks(get_session), scope="function")]

outbox = Outbox()
app = FastAPI()


@outbox.task(queue="mail", retry=Retry(max_attempts=8), timeout=30)
async def send_receipt(order_id: UUID, email: str, *, ctx: JobContext = INJECTED) -> str:
    return f"receipt {order_id} sent to {email} at attempt {ctx.attempt}"


@app.post("/orders", status_code=202)
async def place_order(email: str, session: SessionDep, tasks: OutboxTasks) -> dict[str, UUID]:
    order_id = uuid4()  # session.add(Order(id=order_id, ...)) in the same transaction
    job = tasks.add_task(send_receipt, order_id, email=email)
    return {"order": order_id, "job": job.id}
