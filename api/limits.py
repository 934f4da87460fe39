"""How large a request may be. FastAPI's own ``max_body_size`` answers in plain text; this is answered as a problem."""

from collections.abc import Mapping

from starlette.types import ASGIApp, Receive, Scope, Send

from outbox.fastapi.route import bounded


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
        if scope["type"] == "http":
            receive = bounded(scope, receive, self._paths.get(scope["path"], self._default))
        await self._app(scope, receive, send)
