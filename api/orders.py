"""People order: the order and everything that follows from it, or nothing."""

from datetime import UTC, datetime
from hashlib import sha256
from typing import Annotated
from uuid import UUID, uuid4

from fastapi import APIRouter, Request, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, EmailStr, Field, StringConstraints

from api.database import Idempotent, SessionDep
from api.handlers.analytics import record_order
from api.handlers.inventory import take_from_stock
from api.handlers.mail import send_receipt
from api.handlers.warehouse import announce_order
from api.models import Order, OrderLine
from outbox.fastapi import JobReference, accepted, problem_responses

router = APIRouter(prefix="/orders", tags=["orders"], route_class=Idempotent)

# Starts with a letter or a digit: no spreadsheet takes it for a formula.
Sku = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class LineIn(BaseModel):
    """So many of one article."""

    sku: Sku
    quantity: int = Field(ge=1, le=10_000)
    unit_price_cents: int = Field(ge=0, le=100_000_000)


class OrderIn(BaseModel):
    """What is ordered, and by whom."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "email": "ada@example.com",
                "lines": [{"sku": "TEA-01", "quantity": 2, "unit_price_cents": 1250}],
            }
        }
    )

    email: Annotated[EmailStr, AfterValidator(str.lower)]
    lines: list[LineIn] = Field(min_length=1, max_length=100)


class OrderAccepted(OrderIn):
    """The order exists; what follows from it is on its way."""

    id: UUID
    total_cents: int
    created_at: datetime
    jobs: list[JobReference]


def _customer(email: str) -> str:
    """Who orders, without saying so: the warehouse hears of a customer's orders one after the other."""
    return f"customer-{sha256(email.encode()).hexdigest()[:32]}"


@router.post("", status_code=202, responses=problem_responses(400, 408, 413, 422, 503))
async def place_order(body: OrderIn, session: SessionDep, request: Request, response: Response) -> OrderAccepted:
    """Order."""
    total_cents = sum(line.quantity * line.unit_price_cents for line in body.lines)
    lines = [OrderLine(position=position, **line.model_dump()) for position, line in enumerate(body.lines, 1)]
    order = Order(id=uuid4(), created_at=datetime.now(UTC), email=body.email, total_cents=total_cents, lines=lines)
    session.add(order)
    jobs = accepted(
        request,
        response,
        send_receipt.enqueue(session, order.id),
        announce_order.options(group=_customer(body.email)).enqueue(session, order.id),
        take_from_stock.enqueue(session, order.id),
        record_order.enqueue(session, order.id, total_cents=total_cents, at=order.created_at),
    )
    return OrderAccepted(
        **body.model_dump(), id=order.id, total_cents=total_cents, created_at=order.created_at, jobs=jobs
    )
