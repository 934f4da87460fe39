"""Errors as ``application/problem+json`` (RFC 9457), without inner details: no SQL, no stack, no host."""

from collections.abc import Sequence
from http import HTTPStatus
from traceback import walk_tb
from typing import Any

from fastapi import FastAPI, Request
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException

from outbox.connection import is_lost
from outbox.errors import (
    BatchNotFound,
    IllegalTransition,
    JobExists,
    JobNotFound,
    KeyTaken,
    PayloadInvalid,
    QueueFull,
    ScheduleNotFound,
)
from outbox.fastapi.route import HEADERS

FULL = 5
"""Seconds after which it is worth while to ask again of a queue that was full."""


_CANCELED = "57014"
"""SQLSTATE of a statement that ran into a ``statement_timeout``."""


class Problem(BaseModel):
    """An error, as RFC 9457 wants it."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str | None = None
    instance: str | None = None


def problem(request: Request, status: int, detail: str, *, headers: Any = None, **more: Any) -> JSONResponse:
    """An error answer; ``more`` are members beyond the standard's."""
    body = Problem(title=HTTPStatus(status).phrase, status=status, detail=detail, instance=request.url.path)
    return JSONResponse(
        {**body.model_dump(exclude_none=True), **jsonable_encoder(more)},
        status,
        headers={**HEADERS, **(headers or {})},
        media_type="application/problem+json",
    )


def problem_responses(*codes: int) -> dict[int | str, dict[str, Any]]:
    """The documentation of error answers, for ``responses=``."""
    content = {"application/problem+json": {"schema": Problem.model_json_schema()}}
    again = {"Retry-After": {"description": "Seconds after which to ask again.", "schema": {"type": "integer"}}}
    return {
        code: {"description": HTTPStatus(code).phrase, "content": content}
        | ({"headers": again} if code in (429, 503) else {})
        for code in codes
    }


def problem_handlers(app: FastAPI) -> None:
    """Make every error of the application, the library's included, answer in ``application/problem+json``."""
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)


async def as_problem(request: Request, exc: Exception) -> JSONResponse:
    """The answer to an error; one that nobody expects is raised again."""
    for kind in type(exc).__mro__:
        if kind is not Exception and kind in _HANDLERS:
            answer: JSONResponse = await _HANDLERS[kind](request, exc)
            return answer
    raise exc


async def _http_error(request: Request, exc: Any) -> JSONResponse:
    return problem(request, exc.status_code, str(exc.detail), headers=exc.headers)


async def _request_invalid(request: Request, exc: Any) -> JSONResponse:
    errors = [{"path": _path(each["loc"]), "reason": each["msg"]} for each in exc.errors()]
    return problem(request, 422, "The request is not valid.", errors=errors)


async def _payload_invalid(request: Request, exc: Any) -> JSONResponse:
    errors = [{"path": exc.path, "reason": exc.reason}]
    return problem(request, 422, f"The arguments of task {exc.task} are not valid.", errors=errors)


async def _job_not_found(request: Request, exc: Any) -> JSONResponse:
    return problem(request, 404, f"There is no job {exc.id}.")


async def _batch_not_found(request: Request, exc: Any) -> JSONResponse:
    return problem(request, 404, f"There is no batch {exc.id}.")


async def _schedule_not_found(request: Request, exc: Any) -> JSONResponse:
    return problem(request, 404, f"There is no schedule {exc.name}.")


async def _illegal_transition(request: Request, exc: Any) -> JSONResponse:
    return problem(request, 409, str(exc), state=exc.state, allowed=exc.allowed)


async def _queue_full(request: Request, exc: Any) -> JSONResponse:
    detail = "There is too much to do already; nothing was stored. Try again later."
    return problem(request, 503, detail, headers={"Retry-After": str(FULL)}, queue=exc.queue)


async def _conflict(request: Request, exc: Any) -> JSONResponse:
    return problem(request, 409, str(exc), existing=exc.existing)


async def _database_error(request: Request, exc: Any) -> JSONResponse:
    cause = exc.orig.__cause__ or exc.orig
    if exc.connection_invalidated or is_lost(cause):
        return await _database_gone(request, exc)
    if getattr(cause, "sqlstate", None) == _CANCELED:
        detail = "The database took too long to answer. Ask for less, or later."
        return problem(request, 503, detail, headers={"Retry-After": str(FULL)})
    return problem(request, 500, "The request could not be stored; nothing of it was.")


async def _database_gone(request: Request, _exc: Any) -> JSONResponse:
    return problem(request, 503, "The database cannot be reached.", headers={"Retry-After": "2"})


async def _system_error(request: Request, exc: Any) -> JSONResponse:
    """What the system says of a database that is gone: the driver passes it on as it is, and so does SQLAlchemy.

    Over TCP it is a refused connection, over a Unix socket a file that is not there; a host's own endpoints have such
    errors too, of files and other servers, that say nothing of the database and are raised again. Which it is, nothing
    tells but the way that it came: through the driver, whose name stands here for that.
    """
    if any(frame.f_globals.get("__name__", "").startswith("asyncpg.") for frame, _ in walk_tb(exc.__traceback__)):
        return await _database_gone(request, exc)
    raise exc


async def _crash(request: Request, _exc: Any) -> JSONResponse:
    return problem(request, 500, "Something went wrong inside.")


_HANDLERS: dict[type[Exception], Any] = {
    HTTPException: _http_error,
    RequestValidationError: _request_invalid,
    PayloadInvalid: _payload_invalid,
    JobNotFound: _job_not_found,
    BatchNotFound: _batch_not_found,
    ScheduleNotFound: _schedule_not_found,
    IllegalTransition: _illegal_transition,
    QueueFull: _queue_full,
    JobExists: _conflict,
    KeyTaken: _conflict,
    DBAPIError: _database_error,
    OSError: _system_error,
    PoolTimeout: _database_gone,
    Exception: _crash,
}


def _path(location: Sequence[int | str]) -> str:
    return "$" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
