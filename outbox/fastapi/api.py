"""What all areas of the HTTP API share: the tasks, the database, who may ask, and who waits."""

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from uuid import UUID

from fastapi import APIRouter, Depends, Request
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from starlette.applications import Starlette

from outbox import events, status
from outbox.errors import JobNotFound
from outbox.fastapi.access import Access, Principal, local_only, requires
from outbox.fastapi.unit_of_work import GetSession
from outbox.job import Job
from outbox.keys import Scope
from outbox.pulse import Pulse
from outbox.registry import Outbox
from outbox.watch import Watch

SIGNALS = (signal.SIGTERM, signal.SIGINT)

PATIENCE = 5.0
"""Seconds that a statement may take which only reads. What changes many jobs may take its time."""


class Api:
    """The parts of which the areas are made.

    :ivar session: what a parameter depends on that is the request's session, committed before the answer.
    :ivar reader: what a parameter depends on that is whoever asks, and may read; the others likewise.
    :ivar overseer: one who may read what is about the jobs of all tenants; a ``manager`` may change it.
    :ivar watch: tells those who wait for jobs.
    :ivar pulse: tells those who look at everything.
    """

    def __init__(self, outbox: Outbox, sessions: async_sessionmaker[AsyncSession], access: Access) -> None:
        self.outbox = outbox
        self.sessions = sessions
        self.access = access
        self.watch = Watch(sessions)
        self.pulse = Pulse(sessions)
        self.get_session = _bounded(sessions)
        self.session: Any = Depends(self.get_session, scope="function")
        self.enqueuer: Any = Depends(requires(access, Scope.ENQUEUE))
        self.reader: Any = Depends(requires(access, Scope.READ))
        self.operator: Any = Depends(requires(access, Scope.OPERATE))
        self.overseer: Any = Depends(requires(access, Scope.READ, of_all=True))
        self.manager: Any = Depends(requires(access, Scope.OPERATE, of_all=True))
        self.admin: Any = Depends(requires(access, Scope.ADMIN, of_all=True))

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Of the application: whoever waits is sent home when the process is told to stop."""
        # The API and the dashboard may both be in one application, which is told once.
        if self.access is local_only and not getattr(app.state, "outbox_told_local_only", False):
            app.state.outbox_told_local_only = True
            events.emit(events.WARNING, "api_local_only")
        self.watch.open()
        self.pulse.open()
        loop = asyncio.get_running_loop()
        with _on_signal(lambda: loop.call_soon_threadsafe(self._close)):
            yield
        self._close()

    def _close(self) -> None:
        self.watch.close()
        self.pulse.close()


def _bounded(sessions: async_sessionmaker[AsyncSession]) -> GetSession:
    """As ``session_dependency``, but that whoever reads cannot keep the database busy for long."""

    async def get_session(request: Request) -> AsyncIterator[AsyncSession]:
        async with sessions() as session, session.begin():
            if request.method == "GET":
                # For this transaction only: a connection may be a pooler's.
                await status.read_by_index(session, patience=PATIENCE)
            yield session

    return get_session


@contextmanager
def _on_signal(react: Callable[[], object]) -> Iterator[None]:
    """Call this first when the process is told to stop, and then whoever would have been called.

    A server waits for open streams to end before it says anything to the application, and streams would wait for it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def handle(number: int, frame: Any) -> None:
        react()
        handler = before[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)
        elif handler is signal.SIG_DFL:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    for number in SIGNALS:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is handle:
                signal.signal(number, handler)


async def found(session: AsyncSession, id: UUID, who: Principal) -> Job:
    """The job, if whoever asks may see it; another tenant's is not there.

    :raises JobNotFound: if there is none.
    """
    job = await status.get(session, id, tenant=who.tenant)
    if job is None:
        raise JobNotFound(id)
    return job


Area = Callable[[Api], APIRouter]
"""A part of the API."""
