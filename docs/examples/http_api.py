"""The HTTP API in an application, with keys or with a login of its own."""

from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Request
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from outbox import Outbox
from outbox.fastapi import Principal, api_keys, outbox_router, problem_handlers
from outbox.keys import Scope


def app_with_keys(outbox: Outbox, sessions: async_sessionmaker[AsyncSession]) -> FastAPI:
    app = FastAPI()
    problem_handlers(app)
    app.include_router(outbox_router(outbox, sessions, access=api_keys(sessions)))
    return app


def current_user(request: Request) -> str:
    user = request.headers.get("x-user")  # whatever your application does
    if user is None:
        raise HTTPException(401)
    return user


def who(user: Annotated[str, Depends(current_user)]) -> Principal:
    return Principal(user, frozenset({Scope.READ, Scope.READ_PAYLOAD}), tenant=user)


def app_with_own_users(outbox: Outbox, sessions: async_sessionmaker[AsyncSession]) -> FastAPI:
    app = FastAPI()
    problem_handlers(app)
    app.include_router(outbox_router(outbox, sessions, access=who))
    return app
