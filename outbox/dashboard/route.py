"""Pages answer with pages: also where something is refused, is missing, or does not work."""

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Request
from fastapi.responses import RedirectResponse, Response
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send

from outbox.dashboard.forms import MAX_BODY
from outbox.dashboard.render import has_login, page, site
from outbox.fastapi.problems import as_problem
from outbox.fastapi.route import bounded


class PageRoute(APIRoute):
    """A route whose errors are pages, and that sends whoever is not known to where they can log in, if they can."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        await super().handle(scope, bounded(scope, receive, MAX_BODY), send)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What FastAPI calls for a request."""
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except HTTPException as exc:
                if exc.status_code == 401 and (address := _login(request)) is not None:
                    return RedirectResponse(address, 303)
                return await _error(request, exc)
            except Exception as exc:  # noqa: BLE001 - it is raised again if nobody expects it
                return await _error(request, exc)

        return answer


def _login(request: Request) -> str | None:
    """Where to log in, and then come back to where one wanted to go."""
    if not has_login(request):
        return None
    query = f"?{request.url.query}" if request.url.query else ""
    return site(request).at("login", to=request.url.path + query if request.method == "GET" else None)


async def _error(request: Request, exc: Exception) -> Response:
    answer = await as_problem(request, exc)
    said: dict[str, Any] = json.loads(bytes(answer.body))
    reasons = [f"{each['path']}: {each['reason']}" for each in said.get("errors", [])]
    shown = page(
        request, "error", None, status=said["status"], title=said["title"], detail=said["detail"], reasons=reasons
    )
    for name, value in answer.headers.items():
        shown.headers.setdefault(name, value)
    return shown
