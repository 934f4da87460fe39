"""The session of a request, committed before its response, and the durable stand-in for ``BackgroundTasks``."""

from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, ParamSpec

from fastapi import Depends
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from outbox.newjob import NewJob
from outbox.task import Call, Task

P = ParamSpec("P")

GetSession = Callable[..., AsyncIterator[AsyncSession]]


def session_dependency(sessions: async_sessionmaker[AsyncSession]) -> GetSession:
    """A dependency that opens a session and commits it after the endpoint has returned.

    Use it as ``Annotated[AsyncSession, Depends(get_session, scope="function")]``. Without that scope FastAPI runs the
    commit after the response has been sent, and a commit that fails then has been answered with success.
    """

    async def get_session() -> AsyncIterator[AsyncSession]:
        async with sessions() as session, session.begin():
            yield session

    return get_session


class TaskAdder:
    """Durable stand-in for FastAPI's ``BackgroundTasks``: what is added runs if, and only if, the session commits."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    def add_task(self, task: Task[P, Any] | Call[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> NewJob:
        """Enqueue a task with the request's session.

        :raises TypeError: if ``task`` is a plain function, which no worker could find by name.
        """
        if not hasattr(task, "enqueue"):
            name = getattr(task, "__name__", repr(task))
            raise TypeError(f"add_task({name}): not a task; put @outbox.task() above the function")
        return task.enqueue(self._session, *args, **kwargs)


def outbox_tasks(session: GetSession) -> Callable[..., TaskAdder]:
    """The dependency behind ``OutboxTasks``, for the session dependency of your application:

    OutboxTasks = Annotated[TaskAdder, Depends(outbox_tasks(get_session), scope="function")]
    """

    def add(session: Annotated[AsyncSession, Depends(session, scope="function")]) -> TaskAdder:
        return TaskAdder(session)

    return add
