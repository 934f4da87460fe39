"""The files that pages need, served under addresses that change when they do, so that browsers may keep them."""

from functools import cache
from hashlib import sha256
from pathlib import Path

from fastapi import APIRouter, HTTPException
from fastapi.responses import Response

FOLDER = Path(__file__).parent / "static"

_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


@cache
def _files() -> dict[str, bytes]:
    """By name; a file that is not here when the process starts does not exist."""
    return {path.name: path.read_bytes() for path in FOLDER.iterdir() if path.suffix in _TYPES}


@cache
def digest(name: str) -> str:
    """What its address says of its contents."""
    return sha256(_files()[name]).hexdigest()[:16]


def area() -> APIRouter:
    """The route. The files say nothing of anybody's jobs: they are open to all."""
    router = APIRouter()

    @router.get("/static/{version}/{name}", include_in_schema=False)
    async def get_file(version: str, name: str) -> Response:
        contents = _files().get(name)
        if contents is None or version != digest(name):
            raise HTTPException(404)
        return Response(
            contents,
            media_type=_TYPES[Path(name).suffix],
            headers={"Cache-Control": "public, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"},
        )

    return router
