"""A newsletter: one mail for each reader, an archive when all have been sent, and a report to the editor."""

from sqlalchemy.ext.asyncio import AsyncSession

from outbox import Outbox
from outbox.batch import Batch, BatchSummary

outbox = Outbox()


@outbox.task()
async def render(issue: int) -> str:
    return f"Issue {issue}"


@outbox.task()
async def send(reader: str) -> str:
    return f"sent to {reader}"


@outbox.task()
async def archive(issue: int) -> int:
    return issue


@outbox.task()
async def report(batch: BatchSummary) -> str:
    return f"{batch.name}: {batch.succeeded} of {batch.total}"


async def publish(session: AsyncSession, issue: int, readers: list[str]) -> Batch:
    first = render.job(issue)
    mails = [send.options(after=[first]).job(reader) for reader in readers]
    last = archive.options(after=mails).job(issue)
    batch = Batch(f"issue {issue}", [first, *mails, last], on_complete=report)
    await outbox.enqueue_many(session, batch)  # in the session's transaction, all of it or nothing
    return batch
