"""Two queues with slots of their own, priorities within them, and a person who pauses one."""

from sqlalchemy.ext.asyncio import AsyncSession

from outbox import Outbox, WorkerSettings, queue

outbox = Outbox()
settings = WorkerSettings(queues={"mail": 10, "reports": 2})  # outbox worker ... -q mail:10 -q reports:2


@outbox.task(queue="mail", priority=2)
async def send_receipt(order: int) -> str:
    return f"receipt {order}"


@outbox.task(queue="reports", priority=0)
async def yearly_report(year: int) -> str:
    return f"report {year}"


async def enqueue(session: AsyncSession) -> None:
    send_receipt.enqueue(session, 7)
    send_receipt.options(priority=3).enqueue(session, 8)  # before the others
    yearly_report.enqueue(session, 2026)


async def pause_reports(session: AsyncSession) -> None:
    await queue.pause(session, "reports")


async def resume_reports(session: AsyncSession) -> None:
    await queue.resume(session, "reports")
