"""Dependencies the FastAPI way: opened once, closed once, refused at declaration if only a request could feed them."""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, Any

import fastapi
import pytest
from fastapi import Request

from outbox import Depends, Outbox, injection
from outbox.errors import DeclarationError

KINDS = pytest.mark.parametrize("depends", [Depends, fastapi.Depends], ids=["ours", "fastapi"])


async def resolved(*annotations: Any, raises: BaseException | None = None) -> list[Any]:
    """What a handler with parameters so annotated is given."""
    given: dict[str, Any] = {}

    async def body(dependencies: dict[str, Any]) -> None:
        given.update(dependencies)
        if raises is not None:
            raise raises

    names = [f"p{n}" for n in range(len(annotations))]
    await injection.resolver("t", dict(zip(names, annotations, strict=True)))(body)
    return [given[name] for name in names]


def function() -> str:
    return "function"


async def coroutine() -> str:
    return "coroutine"


def generator() -> Iterator[str]:
    yield "generator"


async def async_generator() -> AsyncIterator[str]:
    yield "async generator"


class Settings:
    name = "settings"


class Service:
    def __init__(self, settings: Annotated[Settings, Depends(Settings)]) -> None:
        self.settings = settings


class Callable_:  # noqa: N801
    def __call__(self) -> str:
        return "callable"


@KINDS
async def test_every_kind_of_callable_is_a_dependency(depends: Any) -> None:
    kinds = [function, coroutine, generator, async_generator]
    found = await resolved(*(Annotated[str, depends(each)] for each in kinds))
    assert found == ["function", "coroutine", "generator", "async generator"]


@KINDS
async def test_a_class_is_made_with_its_own_dependencies(depends: Any) -> None:
    [service] = await resolved(Annotated[Service, depends(Service)])
    assert isinstance(service, Service)
    assert isinstance(service.settings, Settings)


async def test_fastapis_short_form_means_the_class_itself() -> None:
    [settings] = await resolved(Annotated[Settings, fastapi.Depends()])
    assert isinstance(settings, Settings)


@KINDS
async def test_a_shared_dependency_is_opened_once_and_closed_once(depends: Any) -> None:
    said: list[str] = []

    async def pool() -> AsyncIterator[object]:
        said.append("open")
        yield object()
        said.append("close")

    Pool = Annotated[object, depends(pool)]  # noqa: N806

    async def first(pool: Pool) -> object:
        return pool

    def second(pool: Pool, first: Annotated[object, depends(first)]) -> tuple[object, object]:
        return pool, first

    shared, one, pair = await resolved(Pool, Annotated[object, depends(first)], Annotated[Any, depends(second)])
    assert one is shared
    assert pair == (shared, shared)
    assert said == ["open", "close"]


async def test_nothing_is_shared_between_two_attempts() -> None:
    [first] = await resolved(Annotated[Settings, Depends(Settings)])
    [second] = await resolved(Annotated[Settings, Depends(Settings)])
    assert first is not second


async def test_a_dependency_that_asks_not_to_be_shared_is_not() -> None:
    fresh = Annotated[Settings, Depends(Settings, use_cache=False)]
    first, second = await resolved(fresh, fresh)
    assert first is not second


async def test_the_innermost_is_closed_first_and_each_sees_the_exception() -> None:
    said: list[str] = []

    async def outer() -> AsyncIterator[int]:
        try:
            yield 1
        except KeyError:
            said.append("outer saw it")
            raise
        finally:
            said.append("outer closed")

    def inner(_outer: Annotated[int, Depends(outer)]) -> Iterator[int]:
        try:
            yield 2
        except KeyError:
            said.append("inner saw it")
            raise
        finally:
            said.append("inner closed")

    with pytest.raises(KeyError):
        await resolved(Annotated[int, Depends(inner)], raises=KeyError())
    assert said == ["inner saw it", "inner closed", "outer saw it", "outer closed"]


async def test_what_was_opened_is_closed_when_the_next_cannot_be_opened() -> None:
    said: list[str] = []

    async def first() -> AsyncIterator[int]:
        yield 1
        said.append("closed")

    async def first_in_finally() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            said.append("closed")

    async def second() -> int:
        raise LookupError

    with pytest.raises(LookupError):
        await resolved(Annotated[int, Depends(first_in_finally)], Annotated[int, Depends(second)])
    assert said == ["closed"]


async def test_defaults_of_dependencies_are_used() -> None:
    def configured(size: int = 3, *, name: str = "x") -> tuple[int, str]:
        return size, name

    assert await resolved(Annotated[Any, Depends(configured)]) == [(3, "x")]


async def test_a_dependency_keeps_its_value_as_it_is() -> None:
    def text() -> Any:
        return "7"

    assert await resolved(Annotated[int, Depends(text)]) == ["7"]


def wants_request(request: Request) -> Request:
    return request


def wants_query(q: str) -> str:
    return q


def wants_it_below(below: Annotated[Any, fastapi.Depends(wants_request)]) -> Any:
    return below


@KINDS
@pytest.mark.parametrize("dependency", [wants_request, wants_query, wants_it_below])
def test_what_only_a_request_could_give_is_refused_at_declaration(depends: Any, dependency: Callable[..., Any]) -> None:
    async def handler(*, given: Any = ...) -> None: ...

    handler.__annotations__["given"] = Annotated[Any, depends(dependency)]
    with pytest.raises(DeclarationError, match="only a request could give"):
        Outbox().task()(handler)


def hen(egg: "Annotated[Any, Depends(egg)]") -> Any: ...
def egg(hen: Annotated[Any, Depends(hen)]) -> Any: ...


def test_a_dependency_that_needs_itself_is_refused() -> None:
    with pytest.raises(DeclarationError, match="depends on itself"):
        injection.resolver("t", {"p": Annotated[Any, Depends(egg)]})
    with pytest.raises(DeclarationError, match="depends on itself"):  # and again, whatever was remembered
        injection.resolver("t", {"p": Annotated[Any, Depends(hen)]})


def test_only_annotated_depends_is_a_dependency() -> None:
    assert injection.is_dependency(Annotated[int, Depends(function)])
    assert injection.is_dependency(Annotated[int, "text", fastapi.Depends(function)])
    assert not injection.is_dependency(Annotated[int, "text"])
    assert not injection.is_dependency(int)
