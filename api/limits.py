"""How large a request may be. FastAPI's own ``max_body_size`` answers in plain text; this is answered as a problem."""

from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimit:
    """Refuses a body when it is announced as too large, or as soon as it has become so.

    :param default: bytes.
    :param paths: bytes for paths that take more.
    """

    def __init__(self, app: ASGIApp, default: int, paths: Mapping[str, int]) -> None:
        self._app = app
        self._default = default
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._paths.get(scope["path"], self._default)
        announced = Headers(scope=scope).get("content-length", "")
        too_large = announced.isdigit() and (len(announced) > 18 or int(announced) > limit)
        received = 0

        async def limited() -> Message:
            nonlocal received
            message: Message = {} if too_large else await receive()
            received += len(message.get("body", b""))
            # Raised from here it reaches the application's own handlers, for it is the application that reads.
            if too_large or received > limit:
                raise HTTPException(413, f"the request is larger than {limit:,} bytes")
            return message

        await self._app(scope, limited, send)
