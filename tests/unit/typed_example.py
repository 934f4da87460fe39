"""What a type checker must say about calls of ``enqueue``; ``test_typing`` takes the ignores out and compares."""

from typing import Annotated, Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session, scoped_session

from outbox import INJECTED, Depends, JobContext, NewJob, Outbox, Retry, Snooze, Task

outbox = Outbox()


def rate() -> float:
    return 1.0


@outbox.task(queue="mail", retry=Retry(max_attempts=8), timeout=30)
async def send(
    order_id: UUID, email: str = "", *, ctx: JobContext = INJECTED, rate: Annotated[float, Depends(rate)] = INJECTED
) -> dict[str, int]:
    return {"attempt": ctx.attempt}


@outbox.task()
def resize(path: str, *, width: int) -> int | Snooze:
    return width


async def right(
    session: AsyncSession, sync: Session, scoped: scoped_session[Session], connection: AsyncConnection, id: UUID
) -> None:
    job: NewJob = send.enqueue(session, id)
    send.enqueue(sync, id, email="a@b")
    send.enqueue(scoped, id, "a@b")
    send.options(delay=5, priority=3, tags=["vip"]).enqueue(session, id, email="a@b")
    resize.enqueue(session, "x.png", width=3)
    await outbox.enqueue_many(connection, [send.job(id), resize.job("x", width=1), job])
    await outbox.enqueue_many(session, (send.job(id) for _ in range(3)))
    task: Task[..., Any] = send
    print(job.id, task.name)  # noqa: T201


async def wrong(session: AsyncSession, id: UUID) -> None:
    send.enqueue(session)  # type: ignore[call-arg]
    send.enqueue(session, "not a uuid")  # type: ignore[arg-type]
    send.enqueue(session, id, email=7)  # type: ignore[arg-type]
    send.enqueue(session, id, mail="a@b")  # type: ignore[call-arg]
    send.enqueue(session, id, "a@b", email="a@b")  # type: ignore[misc]
    send.enqueue("no session", id)  # type: ignore[arg-type]
    send.options(delay=5).enqueue(session)  # type: ignore[call-arg]
    send.options(priority="high")  # type: ignore[arg-type]
    send.options(colour="red")  # type: ignore[call-arg]
    send.job(id=id)  # type: ignore[call-arg]
    resize.enqueue(session, "x.png")  # type: ignore[call-arg]
    resize.enqueue(session, "x.png", 3)  # type: ignore[call-arg]
    resize.enqueue(session, "x.png", width="3")  # type: ignore[arg-type]
    await outbox.enqueue_many(session, [send])  # type: ignore[list-item]
