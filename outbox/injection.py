"""Handlers get dependencies the FastAPI way, resolved by FastDepends and without touching FastAPI's internals.

A parameter is injected when its annotation says ``Annotated[T, Depends(dependency)]``, with FastAPI's ``Depends`` or
this library's. Dependencies may have dependencies; generators are closed after the handler, and see its exception.
"""

import contextlib
import inspect
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from fast_depends import Depends, Provider, inject
from fast_depends.dependencies import Dependant

from outbox.errors import DeclarationError

__all__ = ["INJECTED", "Depends", "Resolver", "is_dependency", "resolver"]

INJECTED: Any = ...
"""The default of an injected parameter, so that a type checker does not ask callers of ``enqueue`` for it."""

_provider = Provider()
_stand_ins: dict[Any, Callable[..., Any]] = {}

Resolver = Callable[[Callable[[dict[str, Any]], Awaitable[Any]]], Awaitable[Any]]
"""Opens the dependencies, awaits what it is given with them, closes them."""


def is_dependency(annotation: Any) -> bool:
    """Whether a parameter with this annotation is injected."""
    return _marker(annotation) is not None


def resolver(task: str, annotations: Mapping[str, Any]) -> Resolver:
    """What opens the dependencies of a handler, given the annotations of its injected parameters.

    :raises DeclarationError: if a dependency cannot work outside a request.
    """

    async def call(body: Callable[[dict[str, Any]], Awaitable[Any]], **dependencies: Any) -> Any:
        return await body(dependencies)

    parameters = [inspect.Parameter("body", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    parameters += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=_translated(task, annotation))
        for name, annotation in annotations.items()
    ]
    _sign(call, parameters)
    return inject(call, cast=False, dependency_provider=_provider)


def _marker(annotation: Any) -> Dependant | Any | None:
    if get_origin(annotation) is not Annotated:
        return None
    params = sys.modules.get("fastapi.params")
    kinds = (Dependant, params.Depends) if params else (Dependant,)
    return next((each for each in get_args(annotation)[1:] if isinstance(each, kinds)), None)


def _translated(task: str, annotation: Any, above: tuple[Any, ...] = ()) -> Any:
    marker = _marker(annotation)
    assert marker is not None
    kind = get_args(annotation)[0]
    dependency = marker.dependency or kind
    if dependency in above:
        raise DeclarationError(f"task {task!r}: dependency {_name(dependency)} depends on itself")
    if dependency not in _stand_ins:
        _stand_ins[dependency] = _resolvable(task, dependency, (*above, dependency))
    return Annotated[kind, Depends(_stand_ins[dependency], use_cache=marker.use_cache, cast=False)]


def _resolvable(task: str, dependency: Callable[..., Any], above: tuple[Any, ...]) -> Callable[..., Any]:
    """The dependency itself, or, if it has dependencies of its own, a stand-in whose signature FastDepends can read."""
    hints = get_type_hints(dependency.__init__ if inspect.isclass(dependency) else dependency, include_extras=True)
    parameters = []
    for parameter in inspect.signature(dependency).parameters.values():
        annotation = hints.get(parameter.name, parameter.annotation)
        if is_dependency(annotation):
            annotation = _translated(task, annotation, above)
        elif parameter.default is inspect.Parameter.empty:
            raise DeclarationError(
                f"task {task!r}: dependency {_name(dependency)} wants {parameter.name!r}, which only a request could "
                "give; a worker has none. Give it a default or make it a dependency."
            )
        parameters.append(parameter.replace(annotation=annotation, kind=inspect.Parameter.KEYWORD_ONLY))
    if not any(is_dependency(parameter.annotation) for parameter in parameters):
        return dependency
    stand_in = _stand_in(dependency)
    _sign(stand_in, parameters)
    return stand_in


def _stand_in(dependency: Callable[..., Any]) -> Callable[..., Any]:
    if inspect.isasyncgenfunction(dependency):
        managed = contextlib.asynccontextmanager(dependency)

        async def async_generator(**given: Any) -> AsyncIterator[Any]:
            async with managed(**given) as value:
                yield value

        return async_generator
    if inspect.isgeneratorfunction(dependency):

        def generator(**given: Any) -> Iterator[Any]:
            yield from dependency(**given)

        return generator
    if inspect.iscoroutinefunction(dependency):

        async def coroutine(**given: Any) -> Any:
            return await dependency(**given)

        return coroutine

    def function(**given: Any) -> Any:
        return dependency(**given)

    return function


def _sign(function: Any, parameters: list[inspect.Parameter]) -> None:
    function.__signature__ = inspect.Signature(parameters)
    function.__annotations__ = {each.name: each.annotation for each in parameters if each.annotation is not each.empty}


def _name(dependency: Any) -> str:
    return getattr(dependency, "__qualname__", repr(dependency))
