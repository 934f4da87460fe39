"""What happens to one account happens in order, and accounts do not wait for each other."""

from sqlalchemy.ext.asyncio import AsyncSession

from outbox import Outbox

outbox = Outbox()
booked: dict[str, list[int]] = {}


@outbox.task()
async def book(account: str, amount: int) -> None:
    booked.setdefault(account, []).append(amount)


def enqueue(session: AsyncSession, account: str, amount: int) -> None:
    book.options(group=f"account-{account}").enqueue(session, account, amount)
