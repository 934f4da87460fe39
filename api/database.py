"""The database as the service sees it: one engine a process, and the session of one unit of work."""

from functools import cache
from typing import Annotated

from fastapi import Depends
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from api.settings import get_settings
from outbox import address
from outbox.fastapi import idempotent_route, session_dependency


def engine() -> AsyncEngine:
    """The engine of this process; it connects when it is first used."""
    return _engine(get_settings().database_url)


@cache
def _engine(url: str) -> AsyncEngine:
    # The ping costs a fraction of a millisecond and turns a restarted database into one reconnect, not into errors.
    # Parameters are people's data: no error and no log repeats them.
    return address.engine(
        url, pool_pre_ping=True, hide_parameters=True, connect_args={"timeout": 5, "command_timeout": 30}
    )


class _Sessions(async_sessionmaker[AsyncSession]):
    """Bound when a session is made, so that importing this module needs no settings."""

    def __call__(self, **options: object) -> AsyncSession:
        return super().__call__(bind=engine(), **options)


sessions = _Sessions(expire_on_commit=False)
"""For whoever needs several units of work; everybody else asks for a ``SessionDep``."""

get_session = session_dependency(sessions)

Idempotent = idempotent_route(get_session)
"""Routes whose POST requests may be sent again with the same ``Idempotency-Key``."""

SessionDep = Annotated[AsyncSession, Depends(get_session, scope="function")]
"""One unit of work: committed when the function has returned, and before a client is answered.

Without ``scope="function"`` FastAPI would send the answer first, and a failing commit would follow a "202 Accepted".
"""
