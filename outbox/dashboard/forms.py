"""What a page sends: a form's fields, and where to go when it is done."""

from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

from fastapi import HTTPException, Request
from fastapi.responses import RedirectResponse

from outbox.dashboard.render import site

MAX_BODY = 64 * 1024
"""Bytes; two hundred ids have room."""


@dataclass(frozen=True, slots=True)
class Form:
    """The fields of a form, each with all its values."""

    fields: tuple[tuple[str, str], ...]

    def all(self, name: str) -> list[str]:
        """All values of a field."""
        return [value for field, value in self.fields if field == name]

    def get(self, name: str) -> str:
        """The value of a field; empty if it was not sent."""
        return next(iter(self.all(name)), "")

    def number(self, name: str) -> int | None:
        """A whole number, or None where nothing is said.

        :raises HTTPException: 422 if it is none.
        """
        said = self.get(name).strip()
        if not said:
            return None
        if not (said.isascii() and said.isdigit()) or len(said) > 9:
            raise HTTPException(422, f"{name}: must be a whole number")
        return int(said)


async def form(request: Request) -> Form:
    """The form that was sent. It has no files, so nothing but its plain encoding is read.

    :raises HTTPException: 415 or 422 if it is none; 413 if it is too large, as the route says.
    """
    body = await request.body()
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if body and kind != "application/x-www-form-urlencoded":
        raise HTTPException(415, "Send a form.")
    try:
        fields = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=1000, errors="strict")
    except ValueError as exc:
        raise HTTPException(422, "The form cannot be read.") from exc
    return Form(tuple(fields))


def back(request: Request, sent: Form, otherwise: str, *, said: str = "", count: int | None = None) -> RedirectResponse:
    """Go back to where the form was, or to another page; never to another site.

    :param said: the name of what has been done, which the page then says.
    :param count: to how many.
    """
    wanted = sent.get("back")
    home = site(request).home
    split = urlsplit(wanted)
    inside = not split.scheme and not split.netloc and "\\" not in wanted
    if not (inside and (split.path == home or split.path.startswith(home.rstrip("/") + "/"))):
        wanted = otherwise
    if said:
        wanted += ("&" if "?" in wanted else "?") + f"said={said}" + ("" if count is None else f"&count={count}")
    return RedirectResponse(wanted, 303)
