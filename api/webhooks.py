"""Send JSON to somebody else's server, signed after Standard Webhooks, without being turned against our own network.

An address is checked after it is resolved and the connection goes to the very address that was checked, so that a name
which answers differently the second time gains nothing. Redirects are not followed and proxies from the environment
are not used, since either would choose the address anew. The same holds for each retry.
"""

import asyncio
import ipaddress
import json
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any

import httpx2
from pydantic import SecretStr
from standardwebhooks import Webhook

from outbox import Cancel, Retry

logging.getLogger("httpx2").setLevel(logging.WARNING)  # else it writes a line for each request

TIMEOUT = 10.0
"""Seconds for all of it: name, connection, request, answer."""

MAX_ANSWER = 64 * 1024
MAX_PAUSE = 24 * 3600.0
"""Whoever asks us to come back later than in a day is asked again in a day."""

PORTS = frozenset({443, 8443})

Resolve = Callable[[str, int], Awaitable[list[str]]]


class WebhookRefused(Exception):
    """Trying again is useless: we may not call that address, or the other side will not have the request."""


class WebhookFailed(Exception):
    """It did not work this time."""


async def resolve(host: str, port: int) -> list[str]:
    """The host's addresses, in the order in which the system would try them."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        raise WebhookFailed(f"{host} cannot be resolved: {exc}") from exc
    return list(dict.fromkeys(str(address[4][0]) for address in found))


async def send(
    url: str,
    payload: dict[str, Any],
    *,
    id: str,
    secret: SecretStr | None = None,
    allowed_hosts: frozenset[str] = frozenset(),
    resolve: Resolve = resolve,
) -> None:
    """POST the payload to the URL; return once the other side has said yes (2xx).

    :param id: the same for each retry, so that the receiver can tell a repetition.
    :param secret: see ``keys``; each of them signs the request.
    :param allowed_hosts: hosts that are trusted: plain http, any port, any address.
    :raises WebhookRefused: do not try again.
    :raises WebhookFailed: try again.
    """
    body = json.dumps(payload, separators=(",", ":"), ensure_ascii=False)
    headers = {"content-type": "application/json", "user-agent": "outbox", "webhook-id": id}
    if secret is not None:
        now = datetime.now(UTC)
        signatures = " ".join(Webhook(each).sign(id, now, body) for each in keys(secret))
        headers |= {"webhook-timestamp": str(int(now.timestamp())), "webhook-signature": signatures}
    try:
        async with asyncio.timeout(TIMEOUT):
            target = _parse(url, allowed_hosts)
            addresses = await _checked_addresses(target, allowed_hosts, resolve)
            judge(await _post(target, addresses, body, headers))
    except (TimeoutError, httpx2.HTTPError) as exc:
        raise WebhookFailed(f"{type(exc).__name__}: {exc}") from exc


def keys(secret: SecretStr) -> list[str]:
    """The keys in a secret, ``whsec_...``: while one takes the place of another both, with a comma between."""
    return secret.get_secret_value().split(",")


def judge(answer: httpx2.Response) -> None:
    """What an answer means for the job.

    :raises WebhookRefused: 3xx and most of 4xx.
    :raises WebhookFailed: what may pass: 5xx, 408, 425, 429.
    """
    status = answer.status_code
    if 200 <= status < 300:
        return
    if status == 410:
        raise Cancel("the receiver is gone for good (410)")
    if status in (429, 503) and (pause := retry_after(answer.headers)) is not None:
        raise Retry.after(pause, f"the receiver answered {status}")
    if status >= 500 or status in (408, 425, 429):
        raise WebhookFailed(f"the receiver answered {status}")
    raise WebhookRefused(f"the receiver answered {status}")


def retry_after(headers: httpx2.Headers) -> float | None:
    """The seconds that the other side wants to be left alone, from seconds or an HTTP date; None if it does not say."""
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        pause = float(value[:9])
    else:
        try:
            # Both times by the other side's clock where it tells, for ours may differ.
            now = parsedate_to_datetime(headers["date"]) if "date" in headers else datetime.now(UTC)
            pause = (parsedate_to_datetime(value) - now).total_seconds()
        except (ValueError, TypeError):
            return None
    return min(max(pause, 1.0), MAX_PAUSE)


def is_public(address: str) -> bool:
    """Whether the address belongs to the public internet, and to nobody's inside."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv4Address):
        return not any(ip in network for network in _INSIDE_V4)
    return ip in _GLOBAL_V6 and not any(ip in network for network in _INSIDE_V6)


# Not ipaddress.is_global: what it says depends on the Python release, and it lets through multicast.
_INSIDE_V4 = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this host
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's inside, at a public address
        "169.254.0.0/16",  # link-local, and the metadata of most clouds
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",  # multicast, reserved, broadcast
    )
)
# Everything else in IPv6 is inside or wraps an IPv4 address: loopback, v4-mapped, NAT64, ULA, link-local, multicast.
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
_INSIDE_V6 = tuple(
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # Teredo and other protocols
        "2001:db8::/32",
        "2002::/16",  # 6to4 wraps IPv4
        "3fff::/20",
    )
)


def _parse(url: str, allowed_hosts: frozenset[str]) -> httpx2.URL:
    try:
        target = httpx2.URL(url)
    except httpx2.InvalidURL as exc:
        raise WebhookRefused(f"no URL: {exc}") from exc
    trusted = _name(target) in allowed_hosts
    if not target.host or target.userinfo:
        raise WebhookRefused("the URL must name a host and no user")
    if target.scheme != "https" and not (trusted and target.scheme == "http"):
        raise WebhookRefused("the URL must start with https://")
    if not trusted and (target.port or 443) not in PORTS:
        raise WebhookRefused(f"port {target.port} may not be called")
    return target


async def _checked_addresses(target: httpx2.URL, allowed_hosts: frozenset[str], resolve: Resolve) -> list[str]:
    name = _name(target)
    addresses = await resolve(name, target.port or (443 if target.scheme == "https" else 80))
    if not addresses:
        raise WebhookFailed(f"{name} has no address")
    # One inside address among public ones is an attack too, or at least no place to send customers' data.
    if name not in allowed_hosts and not all(map(is_public, addresses)):
        raise WebhookRefused(f"{name} is not on the public internet")
    return addresses


def _name(target: httpx2.URL) -> str:
    return target.raw_host.decode("ascii")


async def _post(target: httpx2.URL, addresses: list[str], body: str, headers: dict[str, str]) -> httpx2.Response:
    # A new client each time: a kept connection belongs to an address, and must not serve another name at it.
    async with httpx2.AsyncClient(verify=_tls(), trust_env=False, follow_redirects=False, timeout=TIMEOUT) as client:
        for address in addresses:
            request = client.build_request(
                "POST",
                target.copy_with(host=address),
                content=body,
                headers=headers | {"host": target.netloc.decode("ascii")},
                extensions={"sni_hostname": _name(target)},
            )
            try:
                answer = await client.send(request, stream=True)
            except httpx2.ConnectError:
                if address == addresses[-1]:
                    raise
                continue
            try:
                await _read(answer)
            finally:
                await answer.aclose()
            return answer
    raise AssertionError("unreachable: there is at least one address")


async def _read(answer: httpx2.Response) -> None:
    # Read to be polite and forget: it is somebody else's text, and a job's error can be seen by many.
    size = 0
    async for chunk in answer.aiter_raw():
        size += len(chunk)
        if size > MAX_ANSWER:
            return


@cache
def _tls() -> ssl.SSLContext:
    return httpx2.create_ssl_context(trust_env=False)
