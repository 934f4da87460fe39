"""Revenue reports. A second run writes the same file again, in place of the first."""

import asyncio
import csv
import io
from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from uuid import NAMESPACE_OID, UUID, uuid5

from pydantic import BaseModel
from sqlalchemy import BigInteger, Row, cast, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from api import files
from api.database import SessionDep
from api.handlers.registry import SettingsDep, outbox
from api.models import Order, OrderLine, Report
from api.settings import Settings
from outbox import INJECTED, Cancel, JobContext

DAY = timedelta(days=1)


class ReportReady(BaseModel):
    """The report as a whole, and where its file is."""

    report_id: UUID
    rows: int
    revenue_cents: int
    download: str


def path_of(settings: Settings, report_id: UUID) -> Path:
    """Where a report's file is."""
    return settings.files_dir / "reports" / f"{report_id}.csv"


@outbox.task(queue="reports", timeout=600)
async def compute_revenue(
    report_id: UUID, *, session: SessionDep = INJECTED, settings: SettingsDep = INJECTED, ctx: JobContext = INJECTED
) -> ReportReady:
    """Revenue per day (UTC) and article, as a CSV file."""
    report = await session.get(Report, report_id)
    if report is None:
        raise Cancel("the report is not wanted any more")
    days = [report.first_day + n * DAY for n in range((report.last_day - report.first_day).days + 1)]
    ready = ReportReady(report_id=report_id, rows=0, revenue_cents=0, download=f"/v1/reports/{report_id}/download")
    async with files.replacing(path_of(settings, report_id)) as file:
        file.write(b"day,sku,quantity,revenue_cents\r\n")
        for done, day in enumerate(days, 1):
            rows = await _revenue_of(session, day)
            await asyncio.to_thread(file.write, _as_csv(day, rows))
            ready.rows += len(rows)
            ready.revenue_cents += sum(row[2] for row in rows)
            ctx.progress(done, len(days), day.isoformat())
    await session.execute(update(Report).where(Report.id == report_id).values(ready_at=func.now()))
    return ready


@outbox.cron("0 6 * * *", tz="Europe/Berlin", moment="at")
@outbox.task(queue="reports", timeout=60)
async def report_yesterday(at: datetime, *, session: AsyncSession = INJECTED) -> UUID:
    """Have the report of the day before made; for each day there is one, however often it is asked for."""
    yesterday = at.astimezone(UTC).date() - DAY
    report = Report(id=uuid5(NAMESPACE_OID, f"revenue of {yesterday}"), first_day=yesterday, last_day=yesterday)
    await session.merge(report)
    compute_revenue.enqueue(session, report.id)
    return report.id


async def _revenue_of(session: AsyncSession, day: date) -> Sequence[Row[str, int, int]]:
    midnight = datetime.combine(day, time(), UTC)
    statement = (
        select(
            OrderLine.sku,
            cast(func.sum(OrderLine.quantity), BigInteger),  # a sum of bigint is numeric
            cast(func.sum(OrderLine.quantity * OrderLine.unit_price_cents), BigInteger),
        )
        .join(Order, Order.id == OrderLine.order_id)
        .where(Order.created_at >= midnight, Order.created_at < midnight + DAY)
        .group_by(OrderLine.sku)
        .order_by(OrderLine.sku)
    )
    return (await session.execute(statement)).all()


def _as_csv(day: date, rows: Sequence[Row[str, int, int]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows([day.isoformat(), *row] for row in rows)
    return text.getvalue().encode()
