"""What a handler takes and gives: its arguments, told apart from what the worker provides, and its result."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import UnionType
from typing import Any, NotRequired, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, PydanticSchemaGenerationError, PydanticUserError, TypeAdapter
from sqlalchemy.ext.asyncio import AsyncSession
from typing_extensions import TypedDict

from outbox import injection
from outbox.context import JobContext
from outbox.errors import DeclarationError
from outbox.outcome import Cancel, Snooze


@dataclass(frozen=True, slots=True)
class Parameters:
    """A handler's parameters, told apart: arguments come from the job, the others from the worker."""

    signature: inspect.Signature
    adapter: TypeAdapter[dict[str, Any]]
    contexts: tuple[str, ...]
    session: str | None
    dependencies: dict[str, Any]
    returns: Any
    """The type of the result that is stored; None if none is."""


def analyse(name: str, handler: Callable[..., Any]) -> tuple[Parameters, TypeAdapter[Any] | None]:
    """The handler's parameters, and how its result is written; None if it has none that is stored.

    :raises DeclarationError: if the one or the other cannot be stored.
    """
    if inspect.isgeneratorfunction(handler) or inspect.isasyncgenfunction(handler):
        raise DeclarationError(f"task {name!r}: a generator cannot be a handler; return a value instead of yielding")
    try:
        hints = get_type_hints(handler, include_extras=True)
    except NameError as exc:
        raise DeclarationError(f"task {name!r}: {exc}; import what its annotations name at module level") from exc
    arguments: list[inspect.Parameter] = []
    contexts: list[str] = []
    sessions: list[str] = []
    dependencies: dict[str, Any] = {}
    for parameter in inspect.signature(handler).parameters.values():
        annotation = hints.get(parameter.name, Any)
        _refuse_nameless(name, parameter)
        if annotation is JobContext:
            contexts.append(parameter.name)
        elif inspect.isclass(annotation) and issubclass(annotation, AsyncSession):
            sessions.append(parameter.name)
        elif injection.is_dependency(annotation):
            dependencies[parameter.name] = annotation
        elif parameter.default is injection.INJECTED:
            raise DeclarationError(
                f"task {name!r}: {parameter.name!r} is INJECTED, but its annotation says none of JobContext, "
                "AsyncSession and Depends"
            )
        else:
            arguments.append(parameter.replace(annotation=annotation))
    if len(sessions) > 1:
        raise DeclarationError(f"task {name!r}: {' and '.join(sessions)} are both an AsyncSession; a job has one")
    returns = _stored_result(hints.get("return", Any))
    parameters = Parameters(
        inspect.Signature(arguments),
        _arguments_adapter(name, arguments),
        tuple(contexts),
        next(iter(sessions), None),
        dependencies,
        returns,
    )
    return parameters, _result_adapter(name, returns)


def _refuse_nameless(name: str, parameter: inspect.Parameter) -> None:
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        raise DeclarationError(f"task {name!r}: *{parameter.name} cannot be stored; name each argument")
    if parameter.kind is parameter.POSITIONAL_ONLY:
        raise DeclarationError(f"task {name!r}: {parameter.name!r} is positional-only; arguments are stored by name")


def _arguments_adapter(name: str, arguments: list[inspect.Parameter]) -> TypeAdapter[dict[str, Any]]:
    fields = {
        each.name: each.annotation if each.default is each.empty else NotRequired[each.annotation] for each in arguments
    }
    make: Any = TypedDict
    stored = make("Arguments", fields)
    # Keys of an older or newer version of the handler are left out when it runs; at enqueue the signature has refused
    # them already.
    stored.__pydantic_config__ = ConfigDict(extra="ignore", ser_json_inf_nan="constants")
    try:
        return TypeAdapter(stored)
    except (PydanticSchemaGenerationError, PydanticUserError) as exc:
        raise DeclarationError(f"task {name!r}: an argument's type cannot be stored as JSON: {exc}") from exc


def _stored_result(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, UnionType):  # "Receipt | Snooze": a Snooze is never stored
        stored = [each for each in get_args(annotation) if each not in (Snooze, Cancel)]
        annotation = Union[tuple(stored)] if stored else None  # noqa: UP007 - put together at run time
    return None if annotation is Any or annotation in (type(None), Snooze, Cancel) else annotation


def _result_adapter(name: str, annotation: Any) -> TypeAdapter[Any] | None:
    if annotation is None:
        return None
    try:
        return TypeAdapter(annotation)
    except (PydanticSchemaGenerationError, PydanticUserError) as exc:
        raise DeclarationError(f"task {name!r}: its return type cannot be stored as JSON: {exc}") from exc
