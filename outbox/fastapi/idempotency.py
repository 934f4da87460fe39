"""``Idempotency-Key``: a request that is sent again is answered again, and not done again.

After the IETF draft: the first request with a key is done, and its answer is kept in the transaction that did it. The
same request with the same key gets that answer, byte for byte; while the first is under way, 409; another request with
the same key, 422. What was not answered with success was rolled back, and its key is free.
"""

import hashlib
import json
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import Depends, Header, HTTPException, Request, Response
from fastapi.routing import APIRoute
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from outbox.fastapi.unit_of_work import GetSession

REPLAYED = "Idempotency-Replayed"
KEPT_HEADERS = ("content-type", "location", "retry-after")

Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="Send the same key when you send a request again: it is done once, and answered alike.",
    ),
]

# A lock of the transaction's: whoever comes while the first is under way need not wait to be told so.
_LOCK = text("select pg_try_advisory_xact_lock(hashtextextended(:source || chr(31) || :key, 1869968484))")
_FIND = text("select fingerprint, answer::text from outbox.inbox where source = :source and message_id = :key")
_KEEP = text(
    """
    insert into outbox.inbox (source, message_id, fingerprint, answer)
    values (:source, :key, :fingerprint, cast(cast(:answer as text) as jsonb))
    """
)


class _Answered(Exception):
    """The request was done before; this was the answer."""

    def __init__(self, response: Response) -> None:
        self.response = response


class _Claim:
    """A key that this request has, in the session in which it is done."""

    def __init__(self, session: AsyncSession, source: str, key: str, fingerprint: str) -> None:
        self._session = session
        self._values = {"source": source, "key": key}
        self._fingerprint = fingerprint

    async def take(self) -> None:
        """Refuse a second request while the first is under way, and answer it when that is over."""
        if not (await self._session.execute(_LOCK, self._values)).scalar():
            detail = "A request with this Idempotency-Key is being worked on; ask again when it is done."
            raise HTTPException(409, detail, headers={"Retry-After": "1"})
        # A statement of its own sees what was committed before the lock was free.
        row = (await self._session.execute(_FIND, self._values)).first()
        if row is None:
            return
        if row.fingerprint != self._fingerprint:
            raise HTTPException(422, "This Idempotency-Key was used for another request; take a new one.")
        kept = json.loads(row.answer)
        headers = {**kept["headers"], REPLAYED: "true"}
        raise _Answered(Response(kept["body"].encode("utf-8", "surrogateescape"), kept["status"], headers))

    async def keep(self, response: Response) -> None:
        """Keep the answer with the transaction, if it is a success that is whole."""
        body = getattr(response, "body", None)
        if body is None or not 200 <= response.status_code < 300:
            return
        kept = {
            "status": response.status_code,
            "headers": {name: response.headers[name] for name in KEPT_HEADERS if name in response.headers},
            "body": bytes(body).decode(),
        }
        await self._session.execute(
            _KEEP, {**self._values, "fingerprint": self._fingerprint, "answer": json.dumps(kept)}
        )


def idempotent_route(get_session: GetSession, *, scope: Callable[[Request], str] | None = None) -> type[APIRoute]:
    """A class of routes whose POST requests may carry an ``Idempotency-Key``: ``APIRouter(route_class=...)``.

    Only what is done in the session of ``get_session`` is done once; what the endpoint does elsewhere is its affair.

    :param get_session: the application's session dependency; its endpoints must use it with ``scope="function"``.
    :param scope: who asks, so that one client's key is not another's: a tenant, say, from the request's credentials.
    """

    async def claim(
        request: Request, session: Annotated[AsyncSession, Depends(get_session, scope="function")], key: Key = None
    ) -> None:
        if key is not None and request.method == "POST":
            source = f"{request.method} {request.url.path} {scope(request) if scope else ''}".rstrip()
            request.state.outbox_claim = _Claim(
                session, source, key, _fingerprint(source, await request.body(), request)
            )
            await request.state.outbox_claim.take()

    class IdempotentRoute(APIRoute):
        def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
            if "POST" in (options.get("methods") or ()):
                options["dependencies"] = [*(options.get("dependencies") or ()), Depends(claim)]
            super().__init__(path, endpoint, **options)

        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def answer(request: Request) -> Response:
                # The session is committed when this returns, and not before.
                try:
                    response = await handle(request)
                except _Answered as answered:
                    return answered.response
                if (mine := getattr(request.state, "outbox_claim", None)) is not None:
                    await mine.keep(response)
                return response

            return answer

    return IdempotentRoute


def _fingerprint(source: str, body: bytes, request: Request) -> str:
    content_type = request.headers.get("content-type", "")
    parts = (source.encode(), request.url.query.encode(), content_type.encode(), body)
    return hashlib.sha256(b"\x1f".join(parts)).hexdigest()
