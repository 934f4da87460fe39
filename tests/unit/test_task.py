"""Declaring: what a signature may say, what a job's arguments become, and what is refused on the spot."""

from __future__ import annotations

import inspect
import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

import pytest
from pydantic import AfterValidator, BaseModel, Field
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from outbox import INJECTED, Depends, JobContext, Outbox, Retry, Snooze, Task
from outbox.errors import DeclarationError, PayloadInvalid

ID = UUID("01890000-0000-7000-8000-000000000000")


class Line(BaseModel):
    sku: str
    count: int = 1


@dataclass
class Address:
    street: str


@pytest.fixture
def outbox() -> Outbox:
    return Outbox()


def stored(task: Task[..., Any], *args: Any, **kwargs: Any) -> Any:
    return json.loads(task.job(*args, **kwargs).payload)


# Arguments.


async def ship(
    order_id: UUID, lines: list[Line], at: datetime, total: Decimal, *, to: Address, rush: bool = False
) -> None:
    """Ships."""


def test_arguments_become_json_by_name_and_come_back_as_they_were(outbox: Outbox) -> None:
    task = outbox.task()(ship)
    moment = datetime(2026, 1, 2, tzinfo=UTC)
    job = task.job(ID, [Line(sku="a")], moment, Decimal("1.10"), to=Address("x"))
    assert json.loads(job.payload) == {
        "order_id": str(ID),
        "lines": [{"sku": "a", "count": 1}],
        "at": "2026-01-02T00:00:00Z",
        "total": "1.10",
        "to": {"street": "x"},
    }
    assert task.arguments(job.payload) == {
        "order_id": ID,
        "lines": [Line(sku="a")],
        "at": moment,
        "total": Decimal("1.10"),
        "to": Address("x"),
    }


def test_what_fits_the_annotation_is_converted_at_once(outbox: Outbox) -> None:
    @outbox.task()
    async def convert(n: int, id: UUID, line: Line) -> None: ...

    given: tuple[Any, ...] = ("7", str(ID), {"sku": "a"})
    assert stored(convert, *given) == {"n": 7, "id": str(ID), "line": {"sku": "a", "count": 1}}


def test_defaults_are_the_handlers_when_it_runs_and_not_stored(outbox: Outbox) -> None:
    @outbox.task()
    async def send(a: int, b: int = 2, *, c: str = "x") -> None: ...

    assert stored(send, 1) == {"a": 1}
    assert stored(send, 1, 3, c="y") == {"a": 1, "b": 3, "c": "y"}
    assert send.arguments('{"a": 1}') == {"a": 1}


def test_unannotated_arguments_are_any_json(outbox: Outbox) -> None:
    @outbox.task()
    async def send(a, b=None): ...  # type: ignore[no-untyped-def]

    assert stored(send, {"x": [1]}, b="y") == {"a": {"x": [1]}, "b": "y"}
    assert send.arguments('{"a": {"x": [1]}}') == {"a": {"x": [1]}}


def test_keys_of_another_version_are_left_out_when_it_runs(outbox: Outbox) -> None:
    @outbox.task()
    async def send(a: int) -> None: ...

    assert send.arguments('{"a": 1, "of_an_older_version": 2}') == {"a": 1}


@pytest.mark.parametrize(
    ("args", "kwargs", "path"),
    [
        ((), {}, "$"),
        ((1, 2, 3), {}, "$"),
        ((1,), {"a": 1}, "$"),
        ((1,), {"unknown": 1}, "$"),
        (("x",), {}, "$.a"),
        ((1,), {"b": ["x"]}, "$.b[0]"),
        ((1,), {"b": [1, None]}, "$.b[1]"),
        ((2**63,), {}, "$.a"),
    ],
    ids=str,
)
def test_arguments_that_do_not_fit_are_refused_at_the_call(
    outbox: Outbox, args: tuple[Any, ...], kwargs: dict[str, Any], path: str
) -> None:
    @outbox.task(name="send")
    async def send(a: int, b: list[int] | None = None) -> None: ...

    with pytest.raises(PayloadInvalid) as caught:
        send.job(*args, **kwargs)
    assert (caught.value.task, caught.value.path) == ("send", path)
    assert caught.value.reason


@pytest.mark.parametrize(
    "raw", ["{}", '{"a": "x"}', '{"a": null}', "[]", "{", '{"a": ' + "[" * 5000, '{"a": 1e400}', '{"a": 1.5}']
)
def test_a_stored_payload_that_does_not_fit_is_refused_and_nothing_else(outbox: Outbox, raw: str) -> None:
    @outbox.task()
    async def send(a: int) -> None: ...

    with pytest.raises(PayloadInvalid):
        send.arguments(raw)


def test_a_validator_that_crashes_spoils_its_own_job(outbox: Outbox) -> None:
    @outbox.task()
    async def send(n: Annotated[int, AfterValidator([].__getitem__)]) -> None: ...

    with pytest.raises(PayloadInvalid, match=r"\$: a validator raised IndexError") as caught:
        send.arguments('{"n": 1}')
    assert isinstance(caught.value.__cause__, IndexError)


def test_the_rules_of_pydantic_hold(outbox: Outbox) -> None:
    @outbox.task()
    async def send(n: Annotated[int, Field(ge=1, le=3)]) -> None: ...

    assert stored(send, 3) == {"n": 3}
    with pytest.raises(PayloadInvalid, match="less than or equal to 3"):
        send.job(4)
    with pytest.raises(PayloadInvalid):
        send.arguments('{"n": 0}')


def test_a_message_shows_no_values(outbox: Outbox) -> None:
    @outbox.task()
    async def send(n: int) -> None: ...

    given: Any = "hunter2"
    with pytest.raises(PayloadInvalid) as caught:
        send.job(given)
    assert "hunter2" not in str(caught.value)


# Injected parameters.


def number() -> int:
    return 7


def test_injected_parameters_are_no_arguments(outbox: Outbox) -> None:
    @outbox.task()
    async def send(
        a: int,
        *,
        ctx: JobContext = INJECTED,
        n: Annotated[int, Depends(number)] = INJECTED,
        also: JobContext = INJECTED,
    ) -> None: ...

    assert stored(send, 1) == {"a": 1}
    assert send.contexts == ("ctx", "also")
    assert send.arguments('{"a": 1, "n": 3, "ctx": 4}') == {"a": 1}
    injected: Any = {"n": 3}
    with pytest.raises(PayloadInvalid, match="unexpected keyword argument"):
        send.job(1, **injected)


def test_a_default_that_says_injected_needs_an_annotation_that_says_what(outbox: Outbox) -> None:
    with pytest.raises(DeclarationError, match="none of JobContext, AsyncSession and Depends"):

        @outbox.task()
        async def send(a: int = INJECTED) -> None: ...


# Declarations.


def test_a_task_calls_its_handler_and_keeps_its_name_and_docs(outbox: Outbox) -> None:
    @outbox.task()
    def double(n: int) -> int:
        """Twice as much."""
        return n * 2

    assert double(4) == 8
    assert (double.__name__, double.__doc__, double.name) == ("double", "Twice as much.", "double")  # type: ignore[attr-defined]
    assert repr(double) == "<Task double>"
    assert not double.is_async
    assert inspect.signature(double) == inspect.signature(double.handler)


def test_the_registry_knows_its_tasks(outbox: Outbox) -> None:
    @outbox.task(name="other name", queue="q", priority=3, retry=5, timeout=timedelta(minutes=1), tags=["t"])
    async def send() -> None: ...

    assert len(outbox) == 1
    assert list(outbox) == [send]
    assert outbox["other name"] is send
    assert "other name" in outbox
    assert "send" not in outbox
    assert (send.timeout, send.retry) == (60.0, Retry(max_attempts=5))
    job = send.job()
    assert (job.task, job.queue) == ("other name", "q")
    assert (job.options.priority, job.options.max_attempts, job.options.tags) == (3, 5, ["t"])


async def plain() -> None: ...
def no_coroutine() -> None: ...


def declared(**options: Any) -> Callable[[Outbox], Any]:
    return lambda outbox: outbox.task(**options)(plain)


def declared_plain(**options: Any) -> Callable[[Outbox], Any]:
    return lambda outbox: outbox.task(**options)(no_coroutine)


def handles(handler: Any) -> Callable[[Outbox], Any]:
    return lambda outbox: outbox.task()(handler)


def star(*items: int) -> None: ...
def stars(**items: int) -> None: ...
def positional(a: int, /) -> None: ...
def generates() -> Iterator[int]:
    yield 1


async def generates_later() -> AsyncIterator[int]:
    yield 1


def unknown_name(a: NowhereDefined) -> None: ...  # type: ignore[name-defined]  # noqa: F821
def not_json(a: NoJson) -> None: ...
def returns_no_json() -> NoJson:
    return NoJson()


class NoJson:
    pass


WRONG: dict[str, tuple[Callable[[Outbox], Any], str]] = {
    "timeout-zero": (declared(timeout=0), "timeout"),
    "timeout-negative": (declared(timeout=-1), "timeout"),
    "timeout-nan": (declared(timeout=float("nan")), "timeout"),
    "timeout-too-long": (declared(timeout=timedelta(days=8)), "timeout"),
    "soft-zero": (declared(timeout=9, soft_timeout=0), "soft_timeout"),
    "soft-not-below": (declared(timeout=9, soft_timeout=9), "below timeout"),
    "soft-alone": (declared(soft_timeout=9), "below timeout"),
    "soft-thread": (declared_plain(timeout=9, soft_timeout=8), "ctx.cancelled"),
    "isolation-unknown": (declared_plain(isolation="thread"), "must be 'process'"),
    "isolation-async": (declared(isolation="process"), "write def"),
    "memory-thread": (declared_plain(memory_limit=2**30), "isolation='process' too"),
    "memory-small": (declared_plain(memory_limit=1000, isolation="process"), "at least"),
    "no-retries": (declared(retry=0), "max_attempts"),
    "priority": (declared(priority=4), "priority"),
    "queue-empty": (declared(queue=""), "queue"),
    "queue-long": (declared(queue="x" * 201), "queue"),
    "queue-nul": (declared(queue="a\0"), "queue"),
    "queue-surrogate": (declared(queue="a\ud800"), "queue"),
    "name-long": (declared(name="x" * 201), "name"),
    "name-nul": (declared(name="a\0b"), "name"),
    "name-surrogate": (declared(name="a\ud800"), "name"),
    "name-newline": (declared(name="a\nb"), "name"),
    "tags-text": (declared(tags="vip"), "tags"),
    "tags-empty": (declared(tags=[""]), "tags"),
    "tags-surrogate": (declared(tags=["\ud800"]), "tags"),
    "star": (handles(star), r"\*items cannot be stored"),
    "stars": (handles(stars), "items cannot be stored"),
    "positional-only": (handles(positional), "positional-only"),
    "generator": (handles(generates), "generator"),
    "async-generator": (handles(generates_later), "generator"),
    "unknown-annotation": (handles(unknown_name), "NowhereDefined"),
    "argument-no-json": (handles(not_json), "cannot be stored as JSON"),
    "result-no-json": (handles(returns_no_json), "return type cannot be stored"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_declaration_is_refused_with_what_is_wrong(outbox: Outbox, wrong: str) -> None:
    declare, said = WRONG[wrong]
    with pytest.raises(DeclarationError, match=said):
        declare(outbox)


def test_two_tasks_cannot_have_one_name(outbox: Outbox) -> None:
    outbox.task()(plain)
    with pytest.raises(DeclarationError, match="declared twice"):
        outbox.task()(plain)
    outbox.task(name="another")(plain)


# Options of one call.


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"priority": 4}, "priority"),
        ({"priority": -1}, "priority"),
        ({"queue": ""}, "queue"),
        ({"queue": "x" * 201}, "queue"),
        ({"queue": "\ud800"}, "queue"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"max_attempts": 32_768}, "max_attempts"),
        ({"delay": -1}, "delay"),
        ({"delay": float("nan")}, "delay"),
        ({"delay": timedelta(seconds=-1)}, "delay"),
        ({"run_at": datetime(2026, 1, 1)}, "time zone"),  # noqa: DTZ001 - naive on purpose
        ({"run_at": datetime(2026, 1, 1, tzinfo=UTC), "delay": 3}, "not both"),
        ({"tags": "vip"}, "tags"),
        ({"tags": [""]}, "tags"),
        ({"tags": ["x" * 201]}, "tags"),
        ({"tags": ["\0"]}, "tags"),
        ({"tags": ["\ud800"]}, "tags"),
    ],
    ids=ascii,
)
def test_options_that_cannot_be_stored_are_refused_at_the_call(
    outbox: Outbox, options: dict[str, Any], said: str
) -> None:
    task = outbox.task()(plain)
    with pytest.raises((ValueError, TypeError), match=said):
        task.options(**options)


def test_options_change_only_what_they_name(outbox: Outbox) -> None:
    task = outbox.task(queue="mail", priority=2, retry=4, tags=["a"])(plain)
    options = task.options(delay=timedelta(minutes=1)).job().options
    assert (options.queue, options.priority, options.max_attempts, options.tags) == ("mail", 2, 4, ["a"])
    assert options.delay == timedelta(minutes=1)
    changed = task.options(priority=0, queue="other", tags=[], max_attempts=1).job().options
    assert (changed.queue, changed.priority, changed.max_attempts, list(changed.tags)) == ("other", 0, 1, [])
    assert task.job().options.delay == 0


async def returns_text_or_snooze() -> str | Snooze:
    return "x"


def test_a_handler_may_say_that_it_snoozes(outbox: Outbox) -> None:
    assert outbox.task()(returns_text_or_snooze).name == "returns_text_or_snooze"


def test_only_an_async_handler_of_an_outbox_with_sessions_gets_a_session(outbox: Outbox) -> None:
    with pytest.raises(DeclarationError, match=r"Outbox\(sessions=async_sessionmaker"):

        @outbox.task()
        async def send(*, session: AsyncSession = INJECTED) -> None: ...

    outbox = Outbox(sessions=async_sessionmaker())
    with pytest.raises(DeclarationError, match="only an async handler"):

        @outbox.task()
        def plain(*, session: AsyncSession = INJECTED) -> None: ...

    with pytest.raises(DeclarationError, match="one and two are both an AsyncSession"):

        @outbox.task()
        async def both(*, one: AsyncSession = INJECTED, two: AsyncSession = INJECTED) -> None: ...

    @outbox.task()
    async def good(n: int, *, session: AsyncSession = INJECTED) -> None: ...

    assert json.loads(good.job(1).payload) == {"n": 1}
    assert good.session == "session"
