"""Old payloads become new ones step by step, and whatever is missing is said where it is declared."""

import json
from typing import Any

import pytest

from outbox import Outbox
from outbox.errors import DeclarationError, PayloadInvalid
from outbox.task import Task


def print_nothing() -> None: ...


def declared() -> tuple[Outbox, Task[..., Any]]:
    outbox = Outbox()

    @outbox.task(version=3)
    async def send(to: list[str], subject: str = "") -> None: ...

    @send.upcast(1)
    def _(arguments: dict[str, Any]) -> dict[str, Any]:
        return {"to": arguments["email"]}

    @send.upcast(2)
    def _(arguments: dict[str, Any]) -> dict[str, Any]:
        arguments["to"] = [arguments["to"]]
        return arguments

    return outbox, send


@pytest.mark.parametrize(
    ("version", "stored"), [(1, {"email": "ada"}), (2, {"to": "ada"}), (3, {"to": ["ada"]}), (None, {"to": ["ada"]})]
)
def test_every_version_becomes_the_latest(version: int | None, stored: dict[str, Any]) -> None:
    _, send = declared()
    assert send.arguments(json.dumps(stored), version) == {"to": ["ada"]}


def test_a_new_job_has_the_version_of_its_task() -> None:
    outbox, send = declared()
    outbox.verify()
    assert send.job(["ada"]).version == 3


def test_a_task_that_says_nothing_has_version_1() -> None:
    @Outbox().task()
    async def send() -> None: ...

    assert send.job().version == send.version == 1


def test_a_missing_upcaster_is_named_before_a_worker_starts() -> None:
    outbox = Outbox()

    @outbox.task(version=4)
    async def send(to: str) -> None: ...

    send.upcast(2)(lambda arguments: arguments)
    with pytest.raises(DeclarationError, match=r"'send': version 4 has no upcast\(1\); missing: 1, 3"):
        outbox.verify()
    with pytest.raises(PayloadInvalid, match=r"there is no upcast\(1\)"):
        send.arguments("{}", 1)


@pytest.mark.parametrize("version", [0, 3, 4, -1])
def test_an_upcaster_that_leads_nowhere_is_refused(version: int) -> None:
    _, send = declared()
    with pytest.raises(DeclarationError, match=rf"upcast\({version}\)"):
        send.upcast(version)(lambda arguments: arguments)


def test_an_upcaster_cannot_be_declared_twice() -> None:
    _, send = declared()
    with pytest.raises(DeclarationError, match="declared twice"):
        send.upcast(1)(lambda arguments: arguments)


@pytest.mark.parametrize("version", [0, -1, 32_768])
def test_a_version_must_fit_its_column(version: int) -> None:
    with pytest.raises(DeclarationError, match="must be 1 to 32,767"):
        Outbox().task(version=version)(print_nothing)


@pytest.mark.parametrize(
    ("lifted", "said"),
    [
        (lambda arguments: arguments["gone"], r"upcast\(1\) raised KeyError$"),
        (lambda _: None, r"upcast\(1\) returned NoneType; it must return a dict"),
        (lambda _: {"n": object()}, "cannot be written as JSON: TypeError"),
    ],
)
def test_an_upcaster_that_fails_spoils_its_own_job(lifted: Any, said: str) -> None:
    outbox = Outbox()

    @outbox.task(version=2)
    async def send(n: int) -> None: ...

    send.upcast(1)(lifted)
    with pytest.raises(PayloadInvalid, match=said):
        send.arguments('{"n": 1}', 1)
    assert send.arguments('{"n": 1}', 2) == {"n": 1}


@pytest.mark.parametrize("raw", ["[1]", '"text"', "null", "1" * 5000, "[" * 100_000])
def test_what_is_no_object_of_arguments_cannot_be_upcast(raw: str) -> None:
    _, send = declared()
    with pytest.raises(PayloadInvalid, match=r"\$: (is no|cannot be read as) JSON"):
        send.arguments(raw, 1)


def test_a_version_from_the_future_is_not_guessed_at() -> None:
    _, send = declared()
    with pytest.raises(PayloadInvalid, match="has version 4, this code knows 1 to 3"):
        send.arguments("{}", 4)
