"""What holds for every route of the API, whatever application it is mounted in: requests are bounded, answers are kept
by nobody.
"""

import asyncio

from fastapi.routing import APIRoute
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

MAX_BODY = 1024 * 1024
"""Bytes of a request. The arguments of a job have at most 1,000,000."""

PATIENCE = 20.0
"""Seconds that a request's body may take to come..."""

PACE = 8192
"""... and bytes for which it may take a second more."""

HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
"""Of every answer: what jobs are about is for whoever has asked, and is never a page."""


class GuardedRoute(APIRoute):
    """A route of the API. FastAPI reads the body before it asks who sends it, so that it must be bounded here."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        await super().handle(scope, bounded(scope, receive, MAX_BODY), _with_headers(scope, send))


def bounded(scope: Scope, receive: Receive, limit: int) -> Receive:
    """Read no more of the request than this, and wait for it no longer than ``PATIENCE`` and ``PACE`` say.

    :param limit: bytes.
    :return: in place of ``receive``; it raises ``HTTPException`` (413) when the body is announced as larger, or as soon
        as it has become so, and 408 when it does not come. Raised from there it reaches the application's own handlers,
        for it is they who read.
    """
    receive = _in_time(scope, receive)
    announced = Headers(scope=scope).get("content-length", "")
    too_large = announced.isdigit() and (len(announced) > 18 or int(announced) > limit)
    received = 0

    async def read() -> Message:
        nonlocal received
        message: Message = {} if too_large else await receive()
        received += len(message.get("body", b""))
        if too_large or received > limit:
            raise HTTPException(413, f"the request is larger than {limit:,} bytes")
        return message

    return read


def _in_time(scope: Scope, receive: Receive) -> Receive:
    began: float | None = None
    received = 0
    is_whole = False

    async def read() -> Message:
        nonlocal began, received, is_whole
        if is_whole:  # what is waited for now is that the client goes away
            return await receive()
        began = began or asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout_at(began + PATIENCE + received / PACE):
                message = await receive()
        except TimeoutError:
            # What is still to come would be in the way of the next request; HTTP/2 has streams for that.
            end = {"Connection": "close"} if scope.get("http_version", "1.1") < "2" else None
            raise HTTPException(408, "The request came too slowly.", headers=end) from None
        received += len(message.get("body", b""))
        is_whole = not message.get("more_body", False)
        return message

    return read


def _with_headers(scope: Scope, send: Send) -> Send:
    async def answer(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.update(scope.get("state", {}).get("outbox_headers", {}))
            # What says that it is private has a tag, and may be kept by the one who has asked.
            own = {"Cache-Control"} if headers.get("cache-control", "").startswith("private") else set()
            headers.update({name: value for name, value in HEADERS.items() if name not in own})
        await send(message)

    return answer
