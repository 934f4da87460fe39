"""The payment provider tells of payments, and tells again until it is answered: each is taken once."""

from datetime import datetime
from typing import Literal
from uuid import UUID

from fastapi import APIRouter, HTTPException, Request
from pydantic import AwareDatetime, BaseModel, ValidationError
from sqlalchemy import update
from standardwebhooks import Webhook, WebhookVerificationError

from api.database import SessionDep
from api.handlers.mail import send_thanks
from api.models import Order
from api.settings import get_settings
from api.webhooks import keys
from outbox import inbox
from outbox.fastapi import problem_responses

router = APIRouter(prefix="/payments", tags=["payments"])


class Payment(BaseModel):
    """What the provider sends."""

    type: Literal["payment.succeeded"]
    order_id: UUID
    paid_at: AwareDatetime


class Taken(BaseModel):
    """The message has arrived; ``new`` is false for one that had before."""

    new: bool
    paid_at: datetime


@router.post("/webhook", responses=problem_responses(400, 401, 404, 408, 413, 422, 503))
async def take_payment(request: Request, session: SessionDep) -> Taken:
    """Take a message of the payment provider (Standard Webhooks)."""
    body = await request.body()
    _verify(body, request)
    try:
        payment = Payment.model_validate_json(body)
    except ValidationError as exc:
        raise HTTPException(422, "This is no message that is known here.") from exc
    new = await inbox.accept(session, "payments", request.headers["webhook-id"])
    if new:
        paid = update(Order).where(Order.id == payment.order_id).values(paid_at=payment.paid_at).returning(Order.id)
        if await session.scalar(paid) is None:
            raise HTTPException(404, "There is no such order (yet).")  # rolled back, so that it may be sent again
        send_thanks.enqueue(session, payment.order_id)
    return Taken(new=new, paid_at=payment.paid_at)


def _verify(body: bytes, request: Request) -> None:
    secret = get_settings().payments_secret
    if secret is None:
        raise HTTPException(404, "Not Found")
    if not any(_fits(key, body, request) for key in keys(secret)):
        raise HTTPException(401, "The signature does not fit.")


def _fits(key: str, body: bytes, request: Request) -> bool:
    try:
        Webhook(key).verify(body, dict(request.headers))
    except WebhookVerificationError:
        return False
    return True
