"""JSON in and out of a job, within what both Postgres and every reader can hold.

Arguments are refused, with the path to the offending value: the caller is still there to mend them. Results and error
texts are made safe: the work is done, and its transition must never be lost.

The limits exist because jsonb refuses NUL, lone surrogates and NaN, and because it holds numbers and depths at which
Python's and JavaScript's parsers fail, so that one such row would poison whoever reads it.
"""

import dataclasses
import json
import math
import re
import traceback
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from uuid import UUID

import pydantic_core
from pydantic import BaseModel, TypeAdapter

from outbox import secret
from outbox.errors import PayloadInvalid, ResultNotStored
from outbox.outcome import Error

MAX_PAYLOAD = 1_000_000
MAX_RESULT = 256_000
MAX_MESSAGE = 8_000
MAX_TRACEBACK = 64_000
"""Sizes in bytes of UTF-8."""

MAX_DEPTH = 64
MAX_INTEGER = 2**63 - 1
MIN_INTEGER = -(2**63)

_HARMLESS = frozenset({bool, type(None), UUID})
"""Types none of whose values can make trouble."""

# A cheap look at the bytes clears almost every value; only a suspect one is walked.
_SUSPECT = re.compile(rb"\\u0000|\\u[dD][89a-fA-F]|NaN|Infinity|[0-9]{19}")


def encode_arguments(task: str, adapter: TypeAdapter[Any], arguments: dict[str, Any]) -> str:
    """A job's arguments as JSON text.

    :raises PayloadInvalid: with the path of the value that cannot be stored.
    """
    refuse(task, arguments)
    try:
        raw = adapter.serializer.to_json(arguments)
    except (ValueError, RecursionError) as exc:
        raise PayloadInvalid(task, "$", f"cannot be written as JSON: {safe_text(str(exc), 500)}") from exc
    return _storable(task, raw)


def encode_sealed(task: str, sealed: Any) -> str:
    """A job's arguments, the secrets among them sealed, as JSON text.

    :raises PayloadInvalid: if they cannot be stored.
    """
    return _storable(task, pydantic_core.to_json(sealed, inf_nan_mode="constants"))


def refuse(task: str, value: Any) -> None:
    """Look for what cannot be stored.

    To be asked before the value is written, because Pydantic writes a NaN inside a model as null, silently, and does
    not say where a surrogate is.

    :raises PayloadInvalid: with the path of the value that cannot be stored.
    """
    if not _is_harmless(value, 1):
        for path, reason in _offences(value, "$", 1):
            raise PayloadInvalid(task, path, reason)


def _storable(task: str, raw: bytes) -> str:
    if len(raw) > MAX_PAYLOAD:
        limit = f"is {len(raw):,} bytes of JSON, the limit is {MAX_PAYLOAD:,}: store it and pass its id"
        raise PayloadInvalid(task, "$", limit)
    if _is_suspect(raw):  # a type's own serializer can write what its values did not show
        try:
            written = json.loads(raw)
        except (ValueError, RecursionError) as exc:
            raise PayloadInvalid(task, "$", f"cannot be read back as JSON: {safe_text(str(exc), 500)}") from exc
        refuse(task, written)
    return raw.decode()


def encode_result(adapter: TypeAdapter[Any] | None, value: Any) -> tuple[str | None, Error | None]:
    """A handler's return value as JSON text, made safe; and what could not be stored, as an error, if anything.

    The job has succeeded whatever stands here, so this never raises.
    """
    if value is None:
        return None, None
    try:
        try:
            raw = adapter.serializer.to_json(value, warnings=False) if adapter else _dump(value)
        except (ValueError, RecursionError, TypeError):
            raw = _dump(_safe(pydantic_core.to_jsonable_python(value), 1))
        if _is_suspect(raw):
            raw = _dump(_safe(json.loads(raw), 1))
    except BaseException as exc:  # noqa: BLE001 - a value's own serializer runs here, and may do anything
        return None, describe(
            ResultNotStored(f"the result, {type(value).__name__}, cannot be written as JSON: {_text(exc)}")
        )
    return _sized(raw)


def encode_sealed_result(sealed: Any) -> tuple[str | None, Error | None]:
    """The same for a result that is JSON already, the secrets in it sealed."""
    return _sized(_dump(_safe(sealed, 1)))


def _sized(raw: bytes) -> tuple[str | None, Error | None]:
    if len(raw) > MAX_RESULT:
        size = f"the result is {len(raw):,} bytes of JSON, the limit is {MAX_RESULT:,}: store it and return its address"
        return None, describe(ResultNotStored(size))
    return raw.decode(), None


def encode_checkpoint(task: str, value: Any) -> str:
    """A checkpoint as JSON text.

    :raises PayloadInvalid: with the path of the value that cannot be stored.
    """
    refuse(task, value)
    try:
        raw = _dump(value)
    except (ValueError, TypeError) as exc:
        raise PayloadInvalid(task, "$", f"cannot be written as JSON: {safe_text(str(exc), 500)}") from exc
    if len(raw) > MAX_RESULT:
        raise PayloadInvalid(task, "$", f"is {len(raw):,} bytes of JSON, the limit of a checkpoint is {MAX_RESULT:,}")
    return raw.decode()


def encode_progress(done: int, total: int | None, message: str | None) -> str:
    """Progress as JSON text, made safe."""
    shown = {
        "done": max(0, min(int(done), MAX_INTEGER)),
        "total": None if total is None else max(0, min(int(total), MAX_INTEGER)),
        "message": None if message is None else safe_text(message, 500),
    }
    return json.dumps(shown, ensure_ascii=False)


def describe(exception: BaseException) -> Error:
    """An exception as text that can be stored whatever it contains; locals are never shown."""
    kind = type(exception)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    try:
        lines = traceback.format_exception(exception) if exception.__traceback__ else []
    except BaseException:  # noqa: BLE001 - the exception's own code runs here
        lines = ["the traceback itself could not be written\n"]
    return Error(
        safe_text(name, 500), safe_text(_text(exception), MAX_MESSAGE), safe_text("".join(lines), MAX_TRACEBACK)
    )


def parse(task: str, raw: str) -> dict[str, Any]:
    """A job's arguments from JSON text, as JSON has them.

    :raises PayloadInvalid: if they are none.
    """
    try:
        arguments = json.loads(raw)
    except (ValueError, RecursionError) as exc:
        raise PayloadInvalid(task, "$", f"cannot be read as JSON: {type(exc).__name__}") from None
    if not isinstance(arguments, dict):
        raise PayloadInvalid(task, "$", "is no JSON object of arguments by name")
    return arguments


def dump(task: str, arguments: dict[str, Any]) -> str:
    """The same, back as JSON text.

    :raises PayloadInvalid: if they hold what is no JSON.
    """
    try:
        return json.dumps(arguments)
    except (ValueError, TypeError, RecursionError) as exc:
        raise PayloadInvalid(task, "$", f"cannot be written as JSON: {type(exc).__name__}") from None


def secrets(value: Any) -> Iterator[Any]:
    """The secrets in a value, wherever they are in it."""
    if isinstance(value, secret.KINDS):
        yield value
    for _, each in _children(value) or ():
        yield from secrets(each)


def scrub(error: Error, said: Iterable[Any]) -> Error:
    """The error with masks where it says one of these secrets."""
    known = list(said)
    return Error(error.type, secret.scrub(error.message, known), secret.scrub(error.traceback, known))


def read(stored: str | None) -> Any:
    """A value from a row, for people to see, with masks for its secrets.

    One that Python cannot hold, which raw SQL can plant, says so instead.
    """
    if stored is None:
        return None
    try:
        return json.loads(stored, object_hook=secret.mask if secret.MARK in stored else None)
    except (ValueError, RecursionError) as exc:
        return {"unreadable": safe_text(f"{type(exc).__name__}: {exc}", 500)}


def is_storable(text: str) -> bool:
    """Whether Postgres can hold the text as it is."""
    return _offence(text) is None


def safe_text(text: str, limit: int) -> str:
    """The text without NUL and lone surrogates, cut to ``limit`` bytes of UTF-8 with a mark where it was cut."""
    # The end of a traceback says more than its middle, and a huge text is cut before it is copied.
    if len(text) > limit:
        text = f"{text[: limit // 2]}\n… {len(text) - limit:,} characters left out …\n{text[-(limit // 2) :]}"
    text = text.encode(errors="replace").decode().replace("\0", "\ufffd")
    raw = text.encode()
    return text if len(raw) <= limit + 100 else raw[:limit].decode(errors="ignore") + " …"


def _text(exception: BaseException) -> str:
    try:
        return str(exception)
    except BaseException as exc:  # noqa: BLE001 - the same
        return f"<the message could not be read: {type(exc).__name__}>"


def _dump(value: Any) -> bytes:
    return pydantic_core.to_json(value, inf_nan_mode="strings", serialize_unknown=False)


def _is_suspect(raw: bytes) -> bool:
    if _SUSPECT.search(raw) is not None:
        return True
    return len(raw) > 2 * MAX_DEPTH and raw.count(b"[") + raw.count(b"{") > MAX_DEPTH


def _is_harmless(value: Any, depth: int) -> bool:
    """Whether a glance clears the value, as it does almost every one; whoever is not cleared is not guilty yet."""
    kind = type(value)
    if kind is str:
        return bool(value.isascii() and "\0" not in value)
    if kind is int:
        return bool(MIN_INTEGER <= value <= MAX_INTEGER)
    if kind is dict:
        return depth <= MAX_DEPTH and all(
            type(key) is str and _is_harmless(key, depth) and _is_harmless(each, depth + 1)
            for key, each in value.items()
        )
    if kind is list:
        return depth <= MAX_DEPTH and all(_is_harmless(each, depth + 1) for each in value)
    return kind in _HARMLESS


def _offences(value: Any, path: str, depth: int) -> Iterator[tuple[str, str]]:
    children = _children(value)
    if children is None:
        if (reason := _offence(value)) is not None:
            yield path, reason
    elif depth > MAX_DEPTH:
        yield path, f"is nested deeper than {MAX_DEPTH} levels"
    else:
        for key, each in children:
            below = child(path, key)
            if isinstance(key, str) and (reason := _offence(key)) is not None:
                yield below, reason
            yield from _offences(each, below, depth + 1)


def _children(value: Any) -> Iterable[tuple[Any, Any]] | None:
    """What is inside a value that JSON writes as an object or an array, by key; None if nothing is."""
    if isinstance(value, str | int | float):  # almost always
        return None
    if isinstance(value, Mapping):
        return value.items()
    if isinstance(value, list | tuple | set | frozenset | deque):
        return enumerate(value)
    if isinstance(value, BaseModel):
        return value
    if dataclasses.is_dataclass(value):
        return ((field.name, getattr(value, field.name, None)) for field in dataclasses.fields(value))
    return None


def _offence(value: Any) -> str | None:
    match value:
        case str() if "\0" in value:
            return "contains a NUL character, which Postgres cannot store"
        case str() if not value.isascii() and _has_surrogate(value):
            return "contains a lone surrogate, which is no Unicode text"
        case int() if not MIN_INTEGER <= value <= MAX_INTEGER:
            return "is an integer beyond 64 bit, which other readers of JSON cannot hold: pass it as a string"
        case float() if not math.isfinite(value):
            return "is NaN or infinite, which JSON cannot hold"
    return None


def _safe(value: Any, depth: int) -> Any:
    match value:
        case bool() | None:
            return value
        case str():
            return safe_text(value, MAX_RESULT)
        case int():
            return value if MIN_INTEGER <= value <= MAX_INTEGER else str(value)
        case float():
            return value if math.isfinite(value) else str(value)
        case list() | dict() if depth > MAX_DEPTH:
            return f"… nested deeper than {MAX_DEPTH} levels …"
        case list():
            return [_safe(each, depth + 1) for each in value]
        case dict():
            return {safe_text(str(key), MAX_MESSAGE): _safe(each, depth + 1) for key, each in value.items()}
    return value


def _has_surrogate(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def child(path: str, key: Any) -> str:
    """The path of what is inside, by its name or its number."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    name = safe_text(str(key), 100)
    return f"{path}.{name}" if name.isidentifier() else f"{path}[{json.dumps(name)}]"
