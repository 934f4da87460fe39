"""The doctor over HTTP: what is wrong with the database or the workers, and what to do about it."""

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, Field

from outbox import doctor
from outbox.fastapi.access import Principal, responses_of
from outbox.fastapi.api import Api
from outbox.fastapi.route import GuardedRoute


class FindingView(BaseModel):
    """What one check has found."""

    check: str
    level: doctor.Level
    text: str
    fix: str = Field(description="What to do; empty where nothing is to be done.")


class SettingView(BaseModel):
    """A setting of the database, and who has set it."""

    name: str
    value: str
    source: str


class DiagnosisView(BaseModel):
    """All that was found, the worst first."""

    level: doctor.Level
    findings: list[FindingView]
    settings: list[SettingView]


def area(api: Api) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["doctor"], route_class=GuardedRoute)
    Manager = Annotated[Principal, api.manager]  # noqa: N806 - a type

    @router.get("/doctor", operation_id="doctor_get", responses=responses_of())
    async def get_diagnosis(who: Manager) -> DiagnosisView:
        """Look at everything that can be wrong; each finding says what to do."""
        # In a session of its own, whose settings are those that others have.
        async with api.sessions() as session:
            found = await doctor.diagnose(await session.connection())
        return DiagnosisView(
            level=found.level,
            findings=[FindingView(**asdict(each)) for each in found.findings],
            settings=[SettingView(**asdict(each)) for each in found.settings],
        )

    return router
