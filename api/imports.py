"""People upload customers as CSV."""

from pathlib import PurePath
from uuid import UUID, uuid4

from fastapi import APIRouter, Request, Response, UploadFile
from pydantic import BaseModel

from api import files
from api.database import SessionDep
from api.handlers.imports import import_customers, path_of
from api.models import CustomerImport
from api.settings import get_settings
from outbox.fastapi import JobReference, accepted, problem_responses

router = APIRouter(prefix="/imports", tags=["imports"])

MAX_UPLOAD = 50 * 1024 * 1024


class ImportAccepted(BaseModel):
    """The file is here; its rows are being read."""

    id: UUID
    filename: str
    size: int
    jobs: list[JobReference]


@router.post("", status_code=202, responses=problem_responses(400, 408, 413, 422, 503))
async def upload_customers(
    file: UploadFile, session: SessionDep, request: Request, response: Response
) -> ImportAccepted:
    """Import customers from a CSV file in UTF-8 with the columns email, name and, if you like, country."""
    id = uuid4()
    # The file first: a committed job must find it. Should the commit fail, the file stays behind unused; it may not
    # be removed then, for a commit that seems to have failed may have happened.
    size = await files.store(file, path_of(get_settings(), id))
    filename = _printable(file.filename or "customers.csv")
    session.add(CustomerImport(id=id, filename=filename, size=size))
    job = import_customers.enqueue(session, id)
    return ImportAccepted(id=id, filename=filename, size=size, jobs=accepted(request, response, job))


def _printable(filename: str) -> str:
    return "".join(character for character in PurePath(filename).name if character.isprintable())[:200]
