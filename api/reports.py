"""People ask for reports, which take longer than anybody wants to wait for an answer."""

from datetime import date, timedelta
from typing import Self
from uuid import UUID, uuid4

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel, model_validator

from api.database import SessionDep, sessions
from api.handlers.reports import compute_revenue, path_of
from api.models import Report
from api.settings import get_settings
from outbox.fastapi import JobReference, accepted, problem_responses

router = APIRouter(prefix="/reports", tags=["reports"])

LONGEST = timedelta(days=366)


class ReportIn(BaseModel):
    """Which days (UTC), both included."""

    first_day: date
    last_day: date

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not timedelta() <= self.last_day - self.first_day < LONGEST:
            raise ValueError("last_day must not be before first_day, nor a year after it")
        if self.last_day.year > 9000:
            raise ValueError("last_day is too far off")
        return self


class ReportAccepted(ReportIn):
    """The report is being made; ``download`` works once its job has succeeded."""

    id: UUID
    download: str
    jobs: list[JobReference]


@router.post("", status_code=202, responses=problem_responses(400, 408, 413, 422, 503))
async def ask_for_report(body: ReportIn, session: SessionDep, request: Request, response: Response) -> ReportAccepted:
    """Ask for revenue per day and article."""
    report = Report(id=uuid4(), first_day=body.first_day, last_day=body.last_day)
    session.add(report)
    job = compute_revenue.enqueue(session, report.id)
    download = f"/v1/reports/{report.id}/download"
    return ReportAccepted(**body.model_dump(), id=report.id, download=download, jobs=accepted(request, response, job))


@router.get("/{report_id}/download", response_class=FileResponse, responses=problem_responses(404, 409, 422, 503))
async def download_report(report_id: UUID) -> FileResponse:
    """The report as CSV."""
    async with sessions() as session:  # closed before the file is sent, however slowly it is read
        report = await session.get(Report, report_id)
    if report is None:
        raise HTTPException(404, "there is no such report")
    if report.ready_at is None:
        raise HTTPException(409, "the report is not ready", headers={"Retry-After": "1"})
    path = path_of(get_settings(), report_id)
    if not path.is_file():
        raise HTTPException(404, "the report's file has been removed")
    name = f"revenue-{report.first_day}-{report.last_day}.csv"
    return FileResponse(path, media_type="text/csv; charset=utf-8", filename=name)
