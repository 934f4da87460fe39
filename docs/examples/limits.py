"""A partner's API bears five calls at once and a hundred a minute, and no tenant may take all of them."""

from sqlalchemy.ext.asyncio import AsyncSession

from outbox import Limit, Outbox, limit

outbox = Outbox()
outbox.limit_queue("reports", Limit(concurrency=2))


@outbox.task(limit=Limit(concurrency=5, rate=100, per=60, burst=10), limit_per_key=Limit(concurrency=2))
async def call_partner(tenant: str, n: int) -> int:
    return n


def enqueue(session: AsyncSession, tenant: str, n: int) -> None:
    call_partner.options(limit_key=tenant).enqueue(session, tenant, n)


async def slow_down(session: AsyncSession) -> None:
    await limit.put(session, "task", "call_partner", Limit(concurrency=1))  # stands above the code until removed
