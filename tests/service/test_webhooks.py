"""Webhooks go where they should and nowhere else, and what is answered decides what follows."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx2
import pytest
from pydantic import SecretStr
from standardwebhooks import Webhook, WebhookVerificationError
from starlette.responses import Response, StreamingResponse

from api import webhooks
from api.webhooks import MAX_PAUSE, Resolve, WebhookFailed, WebhookRefused, is_public, retry_after, send
from outbox import Cancel
from outbox.backoff import RetryAfter
from tests.service.conftest import SECRET
from tests.service.servers import Receiver

OTHER = "whsec_" + "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVoxMjM0NTY="
THIRD = "whsec_" + "MTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTI="

LOOPBACK = frozenset({"127.0.0.1"})


async def chunks(count: int, sent: list[int] | None = None) -> AsyncIterator[bytes]:
    """An answer in pieces of 64 KB, which tells how many of them were taken."""
    for number in range(count):
        yield b"x" * 65_536
        if sent is not None:
            sent.append(number)


def knows(*addresses: str) -> Resolve:
    """A resolver that gives these addresses the first time, and an inside one ever after."""
    answers = [list(addresses)]

    async def resolve(_host: str, _port: int) -> list[str]:
        return answers.pop() if answers else ["169.254.169.254"]

    return resolve


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "10.1.2.3",
        "100.64.0.1",
        "127.0.0.1",
        "169.254.169.254",
        "172.31.255.255",
        "192.168.1.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b:1::a00:1",
        "100::1",
        "2001::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "fc00::1",
        "fd12::1",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
    ],
)
async def test_nobody_can_make_us_call_the_inside(address: str) -> None:
    assert not is_public(address)
    with pytest.raises(WebhookRefused, match="public internet"):
        await send("https://innocent.example/", {}, id="1", resolve=knows("93.184.215.14", address))


@pytest.mark.parametrize("address", ["93.184.215.14", "1.1.1.1", "2606:4700:4700::1111", "2a00:1450:4001:80b::200e"])
def test_the_public_internet_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/",
        "https://10.0.0.1/",
        "https://169.254.169.254/latest/meta-data/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://0x7f.1/",
        "https://2130706433/",
        "https://localhost/",
        "http://example.com/",
        "ftp://example.com/",
        "https://user@example.com/",
        "https://example.com:22/",
        "https:///path",
        "/path",
        "https://exa mple.com:port/",
    ],
)
async def test_addresses_that_may_not_be_called(url: str) -> None:
    with pytest.raises(WebhookRefused):
        await send(url, {}, id="1")


async def test_the_connection_goes_to_the_address_that_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[httpx2.Request] = []

    async def answer(request: httpx2.Request) -> httpx2.Response:
        requests.append(request)
        return httpx2.Response(200, content=chunks(1))

    client = httpx2.AsyncClient
    monkeypatch.setattr(
        httpx2, "AsyncClient", lambda **options: client(transport=httpx2.MockTransport(answer), **options)
    )
    await send("https://shop.example:8443/hook?a=1", {}, id="1", resolve=knows("93.184.215.14"))
    (request,) = requests
    assert str(request.url) == "https://93.184.215.14:8443/hook?a=1"
    assert request.headers["host"] == "shop.example:8443"
    assert request.extensions["sni_hostname"] == "shop.example"


async def test_a_name_that_changes_its_mind_is_asked_once(receiver: Receiver) -> None:
    port = httpx2.URL(receiver.url).port
    hosts = frozenset({"shop.example"})
    await send(f"http://shop.example:{port}/", {}, id="1", allowed_hosts=hosts, resolve=knows("127.0.0.1"))
    assert receiver.deliveries[0].headers["host"] == f"shop.example:{port}"


async def test_the_next_address_is_tried_when_the_first_does_not_answer(receiver: Receiver) -> None:
    port = httpx2.URL(receiver.url).port
    hosts = frozenset({"shop.example"})
    await send(f"http://shop.example:{port}/", {}, id="1", allowed_hosts=hosts, resolve=knows("127.0.0.2", "127.0.0.1"))
    assert len(receiver.deliveries) == 1


async def test_redirects_and_proxies_are_not_followed(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    receiver.answers = [Response(status_code=307, headers={"location": f"{receiver.url}/inside"})]
    with pytest.raises(WebhookRefused, match="307"):
        await send(f"{receiver.url}/", {}, id="1", allowed_hosts=LOOPBACK)
    assert [delivery.path for delivery in receiver.deliveries] == ["/"]


async def test_the_request_is_signed(receiver: Receiver) -> None:
    payload = {"type": "order.placed", "data": {"name": "Zoë"}}
    await send(receiver.url, payload, id="job-1", secret=SecretStr(SECRET), allowed_hosts=LOOPBACK)
    (delivery,) = receiver.deliveries
    assert Webhook(SECRET).verify(delivery.body, delivery.headers) == payload
    assert delivery.headers["webhook-id"] == "job-1"
    assert delivery.headers["content-type"] == "application/json"


async def test_while_the_secret_changes_the_new_one_and_the_old_one_fit(receiver: Receiver) -> None:
    secret = SecretStr(f"{OTHER},{SECRET}")
    await send(receiver.url, {}, id="job-1", secret=secret, allowed_hosts=LOOPBACK)
    (delivery,) = receiver.deliveries
    for key in (SECRET, OTHER):
        Webhook(key).verify(delivery.body, delivery.headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(THIRD).verify(delivery.body, delivery.headers)


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (200, {}, None),
        (204, {}, None),
        (301, {}, WebhookRefused),
        (400, {}, WebhookRefused),
        (408, {}, WebhookFailed),
        (410, {}, Cancel),
        (429, {}, WebhookFailed),
        (429, {"retry-after": "7"}, RetryAfter),
        (500, {}, WebhookFailed),
        (500, {"retry-after": "7"}, WebhookFailed),
        (503, {"retry-after": "7"}, RetryAfter),
        (503, {"retry-after": "soon"}, WebhookFailed),
    ],
)
def test_what_an_answer_means(status: int, headers: dict[str, str], expected: type[Exception] | None) -> None:
    answer = httpx2.Response(status, headers=headers)
    if expected is None:
        webhooks.judge(answer)
    else:
        with pytest.raises(expected):
            webhooks.judge(answer)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7),
        ("0", 1),
        ("-5", None),
        ("1e9", None),
        ("9" * 50, MAX_PAUSE),
        ("Fri, 20 Nov 2026 12:00:30 GMT", 30),
        ("Fri, 20 Nov 2020 12:00:00 GMT", 1),
        ("Fri, 20 Nov 2126 12:00:00 GMT", MAX_PAUSE),
        ("Fri, 99 Nov 2026 12:00:30 GMT", None),
        ("٣", None),
        ("", None),
    ],
)
def test_how_long_to_stay_away(value: str, seconds: float | None) -> None:
    headers = httpx2.Headers({"date": "Fri, 20 Nov 2026 12:00:00 GMT"})
    headers["retry-after"] = value
    assert retry_after(headers) == seconds


def test_how_long_to_stay_away_by_our_own_clock() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    pause = retry_after(httpx2.Headers({"retry-after": later}))
    assert pause is not None
    assert 60 < pause <= 90
    assert retry_after(httpx2.Headers()) is None


async def test_nobody_there_is_tried_again(receiver: Receiver) -> None:
    with pytest.raises(WebhookFailed):
        await send("http://127.0.0.1:1/", {}, id="1", allowed_hosts=LOOPBACK)
    with pytest.raises(WebhookFailed, match="resolved"):
        await send("https://nowhere.invalid/", {}, id="1")


async def test_an_answer_without_an_end_is_not_read_to_the_end(receiver: Receiver) -> None:
    sent: list[int] = []
    receiver.answers = [StreamingResponse(chunks(2000, sent))]
    await send(receiver.url, {}, id="1", allowed_hosts=LOOPBACK)
    assert len(sent) < 2000


async def test_a_silent_receiver_is_given_up(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    async def trickle() -> AsyncIterator[bytes]:
        for _ in range(200):
            yield b"x"
            await asyncio.sleep(0.01)

    monkeypatch.setattr(webhooks, "TIMEOUT", 0.3)
    receiver.answers = [StreamingResponse(trickle())]
    with pytest.raises(WebhookFailed, match="Timeout"):
        await send(receiver.url, {}, id="1", allowed_hosts=LOOPBACK)
