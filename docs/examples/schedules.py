"""A report on every working day, one for each day even after an outage; and one that a person sets up."""

from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncSession

from outbox import Outbox, schedule
from outbox.schedule import Schedule

outbox = Outbox()


@outbox.cron("0 6 * * MON-FRI", tz="Europe/Berlin", catch_up="all", jitter=60, moment="day")
@outbox.task()
async def daily_report(day: datetime) -> str:
    return day.isoformat()


@outbox.task()
async def clean_up(days: int) -> None: ...


async def set_up(session: AsyncSession) -> None:
    await schedule.put(session, Schedule(name="clean up", job=clean_up.job(30), cron="@daily"))
