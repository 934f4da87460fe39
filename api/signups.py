"""People sign up: a user and the welcome mail, or neither."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, HTTPException, Request, Response
from pydantic import AfterValidator, BaseModel, EmailStr, StringConstraints
from sqlalchemy.dialects.postgresql import insert

from api.database import Idempotent, SessionDep
from api.handlers.mail import send_welcome
from api.models import User
from outbox.fastapi import JobReference, accepted, problem_responses

router = APIRouter(prefix="/signups", tags=["signups"], route_class=Idempotent)

# No control characters: a name goes into mails.
Name = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")
]


class SignupIn(BaseModel):
    """Who signs up."""

    email: Annotated[EmailStr, AfterValidator(str.lower)]
    name: Name


class SignupAccepted(SignupIn):
    """The user exists; the mail is on its way."""

    id: UUID
    jobs: list[JobReference]


@router.post("", status_code=202, responses=problem_responses(400, 408, 409, 413, 422, 503))
async def sign_up(body: SignupIn, session: SessionDep, request: Request, response: Response) -> SignupAccepted:
    """Sign up."""
    # ON CONFLICT, not an exception: of two sign-ups at once the second one waits, and is told.
    statement = insert(User).values(**body.model_dump()).on_conflict_do_nothing(index_elements=[User.email])
    id = await session.scalar(statement.returning(User.id))
    if id is None:
        raise HTTPException(409, "somebody has signed up with this e-mail address already")
    job = send_welcome.enqueue(session, id)
    return SignupAccepted(id=id, **body.model_dump(), jobs=accepted(request, response, job))
