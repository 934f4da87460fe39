"""One recalculation for each customer at a time, and one reminder a day."""

from datetime import timedelta

from sqlalchemy.ext.asyncio import AsyncSession

from outbox import NewJob, Outbox

outbox = Outbox()


@outbox.task()
async def recalculate(customer: int) -> None: ...


@outbox.task()
async def remind(customer: int) -> None: ...


def enqueue(session: AsyncSession, customer: int) -> tuple[NewJob, NewJob]:
    once = recalculate.options(key=f"customer-{customer}").enqueue(session, customer)
    daily = remind.options(key=f"customer-{customer}", unique_for=timedelta(days=1)).enqueue(session, customer)
    return once, daily  # after the flush: is_new, and the id of the job that has the key
