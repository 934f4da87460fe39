"""A receipt whose spans belong to the trace of the request that ordered it."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, FastAPI
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import format_trace_id
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from outbox import Outbox

provider = TracerProvider()  # with an exporter of yours: provider.add_span_processor(...)
tracer = provider.get_tracer("shop")
outbox = Outbox()


@outbox.task(queue="mail")
async def send_receipt(order_id: int) -> str:
    with tracer.start_as_current_span("render receipt") as span:
        return format_trace_id(span.get_span_context().trace_id)


def shop(sessions: async_sessionmaker[AsyncSession]) -> FastAPI:
    app = FastAPI(telemetry={"tracer_provider": provider})

    async def begin() -> AsyncIterator[AsyncSession]:
        async with sessions.begin() as session:
            yield session

    @app.post("/orders/{order_id}", status_code=202)
    async def place_order(order_id: int, session: Annotated[AsyncSession, Depends(begin, scope="function")]) -> str:
        return str(send_receipt.enqueue(session, order_id).id)

    return app
