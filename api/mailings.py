"""One mail to everybody who has signed up: a batch, enqueued as a whole or not at all."""

from typing import Annotated

from fastapi import APIRouter, HTTPException, Request, Response
from pydantic import AfterValidator, BaseModel, StringConstraints
from sqlalchemy import select

from api.database import Idempotent, SessionDep
from api.handlers.mail import report_mailing, send_news
from api.handlers.registry import outbox
from api.models import User
from outbox.batch import Batch
from outbox.fastapi import BatchReference, accepted_batch, problem_responses

router = APIRouter(prefix="/mailings", tags=["mailings"], route_class=Idempotent)


def _printable(subject: str) -> str:
    # It is a header of the mail, and the name of the batch.
    if not subject.isprintable():
        raise ValueError("must have printable characters only")
    return subject


class MailingIn(BaseModel):
    """What everybody is told."""

    subject: Annotated[
        str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200), AfterValidator(_printable)
    ]
    text: Annotated[str, StringConstraints(min_length=1, max_length=10_000, pattern=r"^[^\x00]*$")]


@router.post("", status_code=202, responses=problem_responses(400, 408, 409, 413, 422, 503))
async def mail_everybody(body: MailingIn, session: SessionDep, request: Request, response: Response) -> BatchReference:
    """Send a mail to everybody who has signed up; when all have been sent, or not, the shop is told how it went."""
    users = (await session.scalars(select(User.id).order_by(User.id))).all()
    if not users:
        raise HTTPException(409, "nobody has signed up yet")
    mails = (send_news.job(user, subject=body.subject, text=body.text) for user in users)
    batch = Batch(body.subject, mails, on_complete=report_mailing)
    await outbox.enqueue_many(session, batch)
    return accepted_batch(request, response, batch)
