"""How pages are made: templates, what they may say, and the headers under which a browser shows them."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode
from uuid import UUID

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.routing import NoMatchFound

from outbox import words
from outbox.dashboard import assets, charts
from outbox.dashboard.search import Search
from outbox.dashboard.tree import tree
from outbox.fastapi.access import Principal
from outbox.keys import Scope

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
"""Nothing comes from elsewhere, and nothing that stands in a page is a script or a style."""

HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "private, no-store",
    "Vary": "Cookie, Authorization",
}


MEANINGS: Mapping[str, str] = {
    "ready": "Due, and waits for a worker with a free slot",
    "scheduled": "Waits for its time",
    "retrying": "Has failed, and waits for its next attempt",
    "blocked": "Waits for jobs of its group, or for those that it comes after",
    "running": "A worker has claimed it",
    "stopping": "Its worker was asked to stop it",
    "succeeded": "Has ended well",
    "failed": "Has no attempts left; needs somebody",
    "cancelled": "Somebody, or its handler, did not want it any more",
}
"""What the words mean under which jobs are shown."""

SAID: Mapping[str, str] = {
    "cancel": "Cancelled; what runs was asked to stop.",
    "retry": "Runs again.",
    "run": "Due now.",
    "priority": "Has its new priority.",
    "discard": "Deleted.",
    "pause": "Paused.",
    "resume": "Resumed.",
    "ceiling": "The ceiling is set.",
    "limit": "The limit is set.",
    "fire": "Enqueued.",
}
"""What a page says once something has been done."""


class Site:
    """Where the dashboard is mounted, and the pages it has.

    :param home: the path of its first page, behind a proxy that strips a prefix with it.
    """

    def __init__(self, home: str) -> None:
        self.home = home

    def at(self, *segments: object, **query: object) -> str:
        """The address of a page; what is None or empty is left out of the query."""
        path = "/".join([self.home.rstrip("/"), *(quote(str(each), safe="") for each in segments)])
        asked = {name: value for name, value in query.items() if value not in (None, "")}
        return (path or "/") + (f"?{urlencode(asked, doseq=True)}" if asked else "")


def site(request: Request) -> Site:
    """The dashboard as this request reaches it."""
    return Site(request.url_for("outbox_dashboard").path)


def page(request: Request, name: str, who: Principal | None, *, status: int = 200, **values: Any) -> HTMLResponse:
    """A page from the template of that name, for whoever asks."""
    here = site(request)
    template = _environment().get_template(f"{name}.html")
    html = template.render(
        at=here.at,
        asset=lambda file: here.at("static", assets.digest(file), file),
        here=name,
        address_here=_address(request),
        said=_said(request),
        login=has_login(request),
        who=who,
        may=lambda scope: who is not None and who.may(Scope(scope)),
        sees_all=who is not None and who.tenant is None,
        now=datetime.now(UTC),
        said_as=lambda word, value: str(Search(((word, value),))),
        meanings=MEANINGS,
        **values,
    )
    return HTMLResponse(html, status, headers=dict(HEADERS))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    environment.filters |= {
        "number": words.number,
        "span": words.span,
        "distance": words.distance,
        "spark": charts.spark,
        "when": _when,
        "short": _short,
        "plain": _plain,
        "line": _line,
        "isodate": lambda moment: f"{moment:%Y-%m-%d %H:%M} UTC",
        "tree": tree,
    }
    environment.globals |= {"schedule_in_words": words.schedule, "release": version("outbox")}
    return environment


def _when(moment: datetime) -> Markup:
    """A moment, which the browser shows in its own time zone."""
    said = moment.astimezone(UTC)
    return Markup('<time datetime="{}">{} UTC</time>').format(said.isoformat(), f"{said:%Y-%m-%d %H:%M:%S}")


def _short(id: UUID | str) -> str:
    """The end of an id, where UUIDv7 of the same moment differ."""
    return str(id)[-12:]


def _address(request: Request) -> str:
    """Where the page is, without what it says once."""
    kept = [(name, value) for name, value in request.query_params.multi_items() if name not in ("said", "count")]
    return request.url.path + (f"?{urlencode(kept)}" if kept else "")


def _said(request: Request) -> str:
    """What has just been done, in words of ours: an address cannot put others into a page."""
    said = SAID.get(request.query_params.get("said", ""), "")
    count = request.query_params.get("count", "")
    if said and count.isascii() and count.isdigit() and len(count) < 12:
        return f"{words.number(int(count))} jobs: {said[0].lower()}{said[1:]}"
    return said


def has_login(request: Request) -> bool:
    """Whether people log in here, rather than by something of the host's."""
    try:
        request.url_for("outbox_login")
    except NoMatchFound:
        return False
    return True


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _plain(value: Any) -> str:
    """A value as JSON, to be copied."""
    return json.dumps(value, ensure_ascii=False, indent=2, default=str)
