"""What holds for every route of the API, whatever application it is mounted in: requests are bounded, answers are kept
by nobody.
"""

from fastapi.routing import APIRoute
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

MAX_BODY = 1024 * 1024
"""Bytes of a request. The arguments of a job have at most 1,000,000."""

HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
"""Of every answer: what jobs are about is for whoever has asked, and is never a page."""


class GuardedRoute(APIRoute):
    """A route of the API. FastAPI reads the body before it asks who sends it, so that it must be bounded here."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        await super().handle(scope, bounded(scope, receive, MAX_BODY), _with_headers(send))


def bounded(scope: Scope, receive: Receive, limit: int) -> Receive:
    """Read no more of the request than this.

    :param limit: bytes.
    :return: in place of ``receive``; it raises ``HTTPException`` (413) when the body is announced as larger, or as soon
        as it has become so. Raised from there it reaches the application's own handlers, for it is they who read.
    """
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


def _with_headers(send: Send) -> Send:
    async def answer(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            # What says that it is private has a tag, and may be kept by the one who has asked.
            own = {"Cache-Control"} if headers.get("cache-control", "").startswith("private") else set()
            headers.update({name: value for name, value in HEADERS.items() if name not in own})
        await send(message)

    return answer
