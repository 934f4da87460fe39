"""Who asks, and what they may do: closed unless the host says otherwise.

A host gives its own dependency, which answers a ``Principal``; or takes ``api_keys``, whose keys are in the database;
or takes nothing, and then only this machine itself is answered.
"""

import ipaddress
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import Depends, HTTPException, Request
from fastapi.security import APIKeyCookie, HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from outbox import keys
from outbox.fastapi.problems import problem_responses
from outbox.fastapi.rate import Rate, Throttle, network
from outbox.keys import Scope

COOKIE = "outbox_key"
"""In which a browser keeps the key that somebody has logged in with."""

REMEMBERED = 4.0
"""Seconds for which a key that was found good is good without another look; a revoked one so long at most."""

MOST_REMEMBERED = 10_000

REQUESTS = Rate(100, burst=200)
"""Of each key."""

FAILURES = Rate(10, per=60, burst=10)
"""Wrong keys from one address, after which it has to wait."""

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True, slots=True)
class Principal:
    """Whoever asks.

    :ivar name: for the audit.
    :ivar tenant: whose jobs alone they see; None for those of everybody.
    :ivar recheck: asked now and then while they read a stream: whether they still may; None if nobody can tell.
    """

    name: str
    scopes: frozenset[Scope]
    tenant: str | None = None
    recheck: Callable[[], Awaitable[bool]] | None = field(default=None, compare=False, repr=False)

    def may(self, scope: Scope) -> bool:
        """Whether this is open to them."""
        return scope in self.scopes

    async def is_still_good(self) -> bool:
        """Whether a stream that they began may go on."""
        return self.recheck is None or await self.recheck()


Access = Callable[..., Principal | Awaitable[Principal]]
"""A dependency of FastAPI that knows who asks, and raises ``HTTPException`` (401) if it does not."""


def requires(access: Access, scope: Scope, *, of_all: bool = False) -> Callable[..., Principal]:
    """A dependency that lets those pass who may do this.

    :param of_all: whether it is about the jobs of all tenants, so that nobody may who sees those of one.

    What changes something is refused when a browser says that another site sent it: what a browser sends along by
    itself, a cookie or that it is on this machine, says nothing of whose idea it was.
    """

    def check(request: Request, who: Annotated[Principal, Depends(access)]) -> Principal:
        if request.method not in _SAFE and "authorization" not in request.headers:
            refuse_other_sites(request)
        if not who.may(scope):
            raise HTTPException(403, f"This needs the scope {scope}.")
        if of_all and who.tenant is not None:
            raise HTTPException(403, "This is about the jobs of all tenants, and you see those of one.")
        request.state.outbox_principal = f"{who.name}\x1f{who.tenant or ''}"
        return who

    return check


def refuse_other_sites(request: Request) -> None:
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is not None:
        foreign = site not in ("same-origin", "none")
    else:
        foreign = origin is not None and urlsplit(origin).netloc != request.headers.get("host")
    if foreign:
        raise HTTPException(403, "This comes from another site.")


def local_only(request: Request) -> Principal:
    """Everything is open to this machine, and nothing to any other: what holds unless the host says who may ask."""
    client = request.client.host if request.client else ""
    name = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    # A page of another site can make a browser here ask under its own name (DNS rebinding); a proxy asks for others.
    if not is_loopback(client) or not is_loopback(name) or {"forwarded", "x-forwarded-for"} & set(request.headers):
        raise HTTPException(
            401,
            "Nobody has said who may ask, so only this machine itself is answered, under its own name: give "
            "outbox_router(access=...).",
            headers={"WWW-Authenticate": "Bearer"},
        )
    return Principal("local", frozenset(Scope))


def is_loopback(host: str) -> bool:
    """Whether this name or address can only be this machine itself."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def api_keys(
    sessions: async_sessionmaker[AsyncSession], *, rate: Rate = REQUESTS, failures: Rate = FAILURES
) -> "KeyAccess":
    """Access by keys that are in the database (see ``outbox.keys``), sent as ``Authorization: Bearer obx_...``.

    A browser sends the one that somebody has logged in with as a cookie.

    :param rate: how often each key may ask. A long poll and a stream are one request. It holds in each process, for all
        routers that have this access together.
    :param failures: how many wrong keys may come from one address; from one /64 where that is IPv6.
    """
    return KeyAccess(sessions, rate, failures)


_HEADER = HTTPBearer(auto_error=False, scheme_name="key", description="A key, as `outbox keys create` shows it.")
_COOKIE = APIKeyCookie(name=COOKIE, auto_error=False, scheme_name="login", description="The same, of a browser.")


class KeyAccess:
    """Knows keys, for a moment without asking, those who ask too often, and those who try too many."""

    def __init__(self, sessions: async_sessionmaker[AsyncSession], rate: Rate, failures: Rate) -> None:
        self._sessions = sessions
        self._known: dict[bytes, tuple[float, Principal]] = {}
        self._requests = Throttle(rate)
        self._failures = Throttle(failures)

    async def __call__(
        self,
        request: Request,
        sent: Annotated[HTTPAuthorizationCredentials | None, Depends(_HEADER)],
        kept: Annotated[str | None, Depends(_COOKIE)],
    ) -> Principal:
        """Who asks, by the key that they have sent.

        :raises HTTPException: 401 if it is none, 429 if there were too many that were none, or it asks too often.
        """
        return await self.open(request, sent.credentials if sent is not None else kept)

    async def open(self, request: Request, key: str | None) -> Principal:
        """Who has this key.

        :raises HTTPException: 401 if nobody has, 429 if there were too many of these, or it asks too often.
        """
        if key is None:
            raise _unknown("Send a key: Authorization: Bearer obx_...")
        digest = sha256(key.encode(errors="replace")).digest()
        until, principal = self._known.get(digest, (0.0, None))
        if principal is None or time.monotonic() >= until:
            principal = await self._look_up(key, digest, network(request.client.host if request.client else ""))
        # Only what is a key is counted, so that nobody can crowd out what is known of keys.
        wait = self._requests.take(digest)
        request.state.outbox_headers = self._requests.headers(digest)
        if wait:
            raise _too_many("This key asks too often.", wait)
        return principal

    async def _look_up(self, key: str, digest: bytes, address: str) -> Principal:
        self._refuse_if_too_many(digest, address)
        async with self._sessions() as session:
            # Whoever sends a thousand at once waits for a connection like everybody, and may be one too many by then.
            connection = await session.connection()
            self._refuse_if_too_many(digest, address)
            found = await keys.find(connection, key)
            if found is None:  # counted before the next one has the connection
                self._known.pop(digest, None)
                self._failures.take(address)
                raise _unknown("This key is not known, or not good any more.")
        principal = Principal(found.name, keys.opened_by(found.scopes), found.tenant, partial(self._is_good, key))
        if len(self._known) >= MOST_REMEMBERED:
            self._known.clear()
        self._known[digest] = (time.monotonic() + REMEMBERED, principal)
        return principal

    async def _is_good(self, key: str) -> bool:
        async with self._sessions() as session:
            return await keys.find(session, key) is not None

    def _refuse_if_too_many(self, digest: bytes, address: str) -> None:
        """But let those go on who share an address with whoever tries keys: theirs was good a moment ago."""
        if digest not in self._known and (wait := self._failures.wait(address)):
            raise _too_many("Too many wrong keys came from your address.", wait)


def _unknown(detail: str) -> HTTPException:
    return HTTPException(401, detail, headers={"WWW-Authenticate": "Bearer"})


def _too_many(detail: str, wait: float) -> HTTPException:
    return HTTPException(429, detail, headers={"Retry-After": str(math.ceil(wait))})


def responses_of(*codes: int) -> dict[int | str, dict[str, Any]]:
    """The documentation of the error answers of a route that not everybody may call."""
    return problem_responses(400, 401, 403, 408, 413, 429, 503, *codes)
