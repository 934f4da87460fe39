"""Orders that may be sent again, and a payment provider that tells more than once."""

from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Header
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from outbox import Outbox, inbox
from outbox.fastapi import idempotent_route, problem_handlers, session_dependency

engine = create_async_engine("postgresql+asyncpg://localhost/shop")
get_session = session_dependency(async_sessionmaker(engine, expire_on_commit=False))
SessionDep = Annotated[AsyncSession, Depends(get_session, scope="function")]

outbox = Outbox()
router = APIRouter(route_class=idempotent_route(get_session))


@outbox.task()
async def pack(order: int) -> None: ...


@router.post("/orders", status_code=202)
async def place_order(order: int, session: SessionDep) -> dict[str, str]:
    return {"job": str(pack.enqueue(session, order).id)}


@router.post("/payments/webhook")
async def take_payment(order: int, webhook_id: Annotated[str, Header()], session: SessionDep) -> dict[str, bool]:
    # Check the signature first: see api/payments.py.
    new = await inbox.accept(session, "payments", webhook_id)
    if new:
        pack.enqueue(session, order)
    return {"new": new}


app = FastAPI()
app.include_router(router)
problem_handlers(app)
