"""What a request says of who sent it, and how, is believed from named proxies alone. The service is a real process."""

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from outbox.fastapi import access
from tests.service.servers import make_key, service


@pytest.fixture
def key(database_url: str) -> str:
    """A key that somebody may log in with."""
    return make_key(database_url)


@pytest.fixture
def unbelieving(database_url: str, tmp_path: Path) -> Iterator[httpx2.Client]:
    """A client of a service that has been told of no proxy."""
    with service(database_url, tmp_path, OUTBOX_ACCESS="keys") as (url, _), httpx2.Client(base_url=url) as client:
        yield client


@pytest.fixture
def believing(database_url: str, tmp_path: Path) -> Iterator[httpx2.Client]:
    """A client of a service whose proxy this machine is."""
    told = {"OUTBOX_ACCESS": "keys", "FORWARDED_ALLOW_IPS": "127.0.0.0/8"}
    with service(database_url, tmp_path, **told) as (url, _), httpx2.Client(base_url=url) as client:
        yield client


def statuses(client: httpx2.Client, said: list[str]) -> list[int]:
    """The answers to wrong keys, each sent for the one whom the header names."""
    return [
        client.get("/v1/jobs", headers={"Authorization": f"Bearer obx_{n:012x}_x", "X-Forwarded-For": each}).status_code
        for n, each in enumerate(said)
    ]


def login(client: httpx2.Client, key: str, **said: str) -> str:
    """The cookie that comes of logging in."""
    answer = client.post("/outbox/login", data={"key": key}, headers=said)
    assert answer.status_code == 303
    assert answer.headers["location"].startswith("/outbox")
    return answer.headers["set-cookie"].lower()


def elsewhere(client: httpx2.Client, **said: str) -> str:
    """Where a path with one slash too many is sent: the only links with a scheme are those of the framework."""
    answer = client.get("/v1/jobs/", headers=said)
    assert answer.status_code == 307
    return answer.headers["location"].partition("://")[0]


def test_nobody_is_believed_unless_they_are_named(unbelieving: httpx2.Client, key: str) -> None:
    for header, value in {
        "X-Forwarded-Proto": "https",
        "Forwarded": "proto=https",
        "X-Forwarded-Scheme": "https",
    }.items():
        assert "secure" not in login(unbelieving, key, **{header: value})
        assert elsewhere(unbelieving, **{header: value}) == "http"
    spoofed = [f"192.0.2.{n}" for n in range(access.FAILURES.burst + 1)]
    assert statuses(unbelieving, spoofed) == [401] * access.FAILURES.burst + [429]


def test_a_named_proxy_says_who_asks_and_how(believing: httpx2.Client, key: str) -> None:
    assert "secure" in login(believing, key, **{"X-Forwarded-Proto": "https"})
    assert "secure" not in login(believing, key, **{"X-Forwarded-Proto": "http"})
    assert elsewhere(believing, **{"X-Forwarded-Proto": "https"}) == "https"
    others = [f"192.0.2.{n}" for n in range(access.FAILURES.burst + 1)]
    assert statuses(believing, others) == [401] * len(others)
    # A proxy adds whom it has met to whatever the client had said: only what stands last is its own.
    added = [f"203.0.113.{n}, 198.51.100.7, 127.0.0.1" for n in range(access.FAILURES.burst + 1)]
    assert statuses(believing, added) == [401] * access.FAILURES.burst + [429]
