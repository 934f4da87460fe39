"""Logging in with a key, and out again."""

from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Query, Request
from fastapi.responses import RedirectResponse, Response

from outbox.dashboard.forms import Form, back, form
from outbox.dashboard.render import page, site
from outbox.dashboard.route import PageRoute
from outbox.fastapi.access import COOKIE, KeyAccess, refuse_other_sites

STAYS = 12 * 3600
"""Seconds for which a browser keeps the key."""


def area(access: KeyAccess) -> APIRouter:
    """The routes."""
    router = APIRouter(route_class=PageRoute, include_in_schema=False)

    @router.get("/login", name="outbox_login")
    async def show_login(request: Request, to: Annotated[str, Query(max_length=4000)] = "") -> Response:
        return page(request, "login", None, to=to, wrong="")

    @router.post("/login")
    async def log_in(request: Request, sent: Annotated[Form, Depends(form)]) -> Response:
        refuse_other_sites(request)
        key = sent.get("key").strip()
        try:
            await access.open(request, key)
        except HTTPException as exc:
            shown = page(request, "login", None, status=exc.status_code, to=sent.get("back"), wrong=exc.detail)
            shown.headers.update(exc.headers or {})
            return shown
        answer = back(request, sent, site(request).home)
        answer.set_cookie(
            COOKIE,
            key,
            max_age=STAYS,
            path=site(request).home or "/",
            httponly=True,
            secure=request.url.scheme == "https",
            samesite="strict",
        )
        return answer

    @router.post("/logout")
    async def log_out(request: Request) -> Response:
        refuse_other_sites(request)
        answer = RedirectResponse(site(request).at("login"), 303)
        answer.delete_cookie(COOKIE, path=site(request).home or "/")
        return answer

    return router
