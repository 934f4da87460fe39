"""Arguments are stored or refused with a path; results and errors are made storable, and nothing here ever raises."""

import dataclasses
import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from pydantic import BaseModel, TypeAdapter

from outbox import payload
from outbox.errors import PayloadInvalid
from outbox.outcome import Error
from tests.unit.values import anything, storable

ANY: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])
DEPTH = payload.MAX_DEPTH


def encode(value: Any) -> Any:
    return json.loads(payload.encode_arguments("t", ANY, {"v": value}))["v"]


def refused(value: Any, adapter: TypeAdapter[Any] = ANY) -> tuple[str, str]:
    with pytest.raises(PayloadInvalid) as caught:
        payload.encode_arguments("t", adapter, {"v": value})
    return caught.value.path, caught.value.reason


def nested(depth: int, inner: Any = 0) -> Any:
    """A value that is ``depth`` levels deep, or one more if ``inner`` has one."""
    for _ in range(depth):
        inner = [inner]
    return inner


class Line(BaseModel):
    price: float
    notes: list[str] = []


class Order(BaseModel):
    lines: list[Line]


@dataclasses.dataclass
class Point:
    x: float


@dataclasses.dataclass(slots=True)
class Slotted:
    x: float


# Arguments.


@pytest.mark.parametrize(
    "value",
    [
        "\U0001f600",
        "é ü 漢字 \u2028 \x01 \x7f",
        "\\u0000 is text, not a NUL",
        "NaN",
        "Infinity",
        "1234567890123456789012345",
        2**63 - 1,
        -(2**63),
        1e308,
        5e-324,
        -0.0,
        "[" * 1000,
        {"": 1, "a.b": 2},
        [[], {}, [{}]],
        True,
        None,
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_what_can_be_stored_comes_back_as_it_was(value: Any) -> None:
    assert encode(value) == value


@pytest.mark.parametrize(
    ("value", "path", "reason"),
    [
        ("a\0b", "$.v", "NUL"),
        ({"k": ["x", "\0"]}, "$.v.k[1]", "NUL"),
        ({"a\0b": 1}, '$.v["a\\ufffdb"]', "NUL"),
        ("\ud800", "$.v", "surrogate"),
        ("\ude00\ud83d", "$.v", "surrogate"),
        ([{"deep": "x\udfff"}], "$.v[0].deep", "surrogate"),
        ({"\ud800": 1}, '$.v["?"]', "surrogate"),
        (2**63, "$.v", "64 bit"),
        (-(2**63) - 1, "$.v", "64 bit"),
        ([0, {"n": 10**50}], "$.v[1].n", "64 bit"),
        (math.nan, "$.v", "NaN"),
        ([1.0, math.inf], "$.v[1]", "NaN or infinite"),
        ({"a b": -math.inf}, '$.v["a b"]', "NaN or infinite"),
        ((1.0, math.nan), "$.v[1]", "NaN"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_what_cannot_be_stored_is_refused_with_its_path(value: Any, path: str, reason: str) -> None:
    found, said = refused(value)
    assert found == path
    assert reason in said


def test_an_integer_of_thousands_of_digits_is_refused() -> None:
    assert refused([0, {"n": 10**5000}])[1]


def test_both_halves_of_a_pair_make_one_character() -> None:
    assert encode(json.loads('"\\ud83d\\ude00"')) == "\U0001f600"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_is_found_inside_models_and_dataclasses(bad: float) -> None:
    assert refused(Order(lines=[Line(price=1), Line(price=bad)]))[0] == "$.v.lines[1].price"
    assert refused([Point(bad)])[0] == "$.v[0].x"
    assert refused(Slotted(bad))[0] == "$.v.x"
    model: TypeAdapter[Any] = TypeAdapter(dict[str, Order])
    assert refused(Order(lines=[Line(price=bad)]), model)[0] == "$.v.lines[0].price"
    point: TypeAdapter[Any] = TypeAdapter(dict[str, Slotted])
    assert refused(Slotted(bad), point)[0] == "$.v.x"


def test_text_is_checked_inside_models() -> None:
    model: TypeAdapter[Any] = TypeAdapter(dict[str, Order])
    path, reason = refused(Order(lines=[Line(price=1, notes=["ok", "a\0b"])]), model)
    assert path == "$.v.lines[0].notes[1]"
    assert "NUL" in reason
    path, reason = refused(Order(lines=[Line(price=1, notes=["\ud800"])]), model)
    assert "surrogate" in reason


def test_sixty_four_levels_are_the_limit() -> None:
    assert encode(nested(DEPTH - 1)) == nested(DEPTH - 1)
    path, reason = refused(nested(DEPTH))
    assert reason == "is nested deeper than 64 levels"
    assert path.startswith("$.v[0][0]")
    assert refused(nested(3000))[1]


def test_recursion_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    assert refused(value)[1]


def test_a_megabyte_is_the_limit() -> None:
    frame = len('{"v":""}')
    assert encode("x" * (payload.MAX_PAYLOAD - frame)) == "x" * (payload.MAX_PAYLOAD - frame)
    path, reason = refused("x" * (payload.MAX_PAYLOAD - frame + 1))
    assert path == "$"
    assert "1,000,001 bytes" in reason
    assert "1,000,000" in reason
    assert refused("é" * (payload.MAX_PAYLOAD // 2))[0] == "$"


@pytest.mark.parametrize("value", [object(), print, {"a": [object()]}], ids=["object", "function", "nested"])
def test_what_is_no_json_is_refused(value: Any) -> None:
    assert refused(value)[1]


@given(anything)
def test_any_arguments_are_stored_as_they_are_or_refused(value: Any) -> None:
    if storable({"v": value}):
        assert encode(value) == value
    else:
        path, reason = refused(value)
        assert path.startswith("$.v")
        assert storable(path)
        assert storable(reason)


# Results.


def result(value: Any, annotation: Any = None) -> tuple[Any, Error | None]:
    adapter = None if annotation is None else TypeAdapter[Any](annotation)
    raw, error = payload.encode_result(adapter, value)
    if raw is not None:
        assert storable(json.loads(raw)), raw
    return (None if raw is None else json.loads(raw)), error


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (None, None),
        ("text", "text"),
        (0, 0),
        (False, False),
        ([], []),
        ("a\0b", "a\ufffdb"),
        ("\ud800", "?"),
        ({"a\0": ["\udfff"]}, {"a\ufffd": ["?"]}),
        ("\U0001f600", "\U0001f600"),
        (math.nan, "NaN"),
        ([math.inf, -math.inf], ["Infinity", "-Infinity"]),
        (2**63, str(2**63)),
        (2**63 - 1, 2**63 - 1),
        ({1, 2}, [1, 2]),
        ((1, "x"), [1, "x"]),
        (Line(price=1.5), {"price": 1.5, "notes": []}),
        (Point(2.0), {"x": 2.0}),
        (b"bytes", "bytes"),
        ({1: "integer key"}, {"1": "integer key"}),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_results_are_made_storable(value: Any, stored: Any) -> None:
    assert result(value) == (stored, None)


def recursive() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


class Hostile:
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class HostileModel(BaseModel):
    @property
    def dump(self) -> str:
        return ""

    def __iter__(self) -> Any:
        raise SystemError

    def model_dump(self, **_: Any) -> Any:
        raise SystemError


@pytest.mark.parametrize(
    "value",
    [object(), print, Hostile(), {"a": object()}, recursive(), lambda: None, type, iter([])],
    ids=["object", "builtin", "hostile", "nested", "recursive", "lambda", "type", "iterator"],
)
def test_a_result_that_is_no_json_is_told_and_never_raised(value: Any) -> None:
    stored, error = result(value)
    if error is None:  # some things that are no JSON have an honest JSON form, such as an iterator's list
        assert storable(stored)
    else:
        assert stored is None
        assert error.type == "outbox.errors.ResultNotStored"
        assert "cannot be written as JSON" in error.message


def test_a_result_of_another_type_than_annotated_is_stored_all_the_same() -> None:
    assert result("text", int) == ("text", None)
    assert result({"a": "x\0"}, dict[str, str]) == ({"a": "x\ufffd"}, None)
    assert result(Order(lines=[Line(price=math.nan)]), Order)[1] is None
    assert result(Order(lines=[]), Line)[1] is None


def test_a_result_beyond_the_limit_is_told() -> None:
    frame = len('""')
    assert result("x" * (payload.MAX_RESULT - frame)) == ("x" * (payload.MAX_RESULT - frame), None)
    stored, error = result("x" * payload.MAX_RESULT)
    assert stored is None
    assert error is not None
    assert error.type == "outbox.errors.ResultNotStored"
    assert "256,000" in error.message


def test_a_result_that_is_nested_too_deeply_is_cut() -> None:
    stored, error = result(nested(DEPTH + 5))
    assert error is None
    assert "nested deeper" in json.dumps(stored, ensure_ascii=False)
    assert result(nested(DEPTH)) == (nested(DEPTH), None)
    result(nested(100_000))


@given(anything)
def test_any_result_is_stored_in_some_form(value: Any) -> None:
    stored, error = result(value)
    assert error is None or error.type == "outbox.errors.ResultNotStored"
    if storable(value):
        assert (stored, error) == (value, None)


# Errors.


def test_an_exception_is_described_with_its_traceback() -> None:
    with pytest.raises(PayloadInvalid) as caught:
        raise PayloadInvalid("t", "$.a", "is bad")
    error = payload.describe(caught.value)
    assert error.type == "outbox.errors.PayloadInvalid"
    assert error.message == "arguments of task 't': $.a: is bad"
    assert error.traceback.startswith("Traceback (most recent call last):\n")
    assert "is bad" in error.traceback


def test_an_exception_that_was_never_raised_has_no_traceback() -> None:
    assert payload.describe(ValueError("x")) == Error("ValueError", "x", "")


def test_locals_are_never_shown() -> None:
    secret = "hunter" + "2"
    with pytest.raises(ValueError, match="7") as caught:
        raise ValueError(len(secret))
    error = payload.describe(caught.value)
    assert "len(secret)" in error.traceback
    assert "hunter2" not in error.traceback


class StrRaises(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class StrIsNoText(Exception):
    def __str__(self) -> str:
        return 7  # type: ignore[return-value]  # noqa: PLE0307


class StrExits(Exception):
    def __str__(self) -> str:
        raise SystemExit(1)


@pytest.mark.parametrize("kind", [StrRaises, StrIsNoText, StrExits])
def test_an_exception_whose_text_cannot_be_read_is_described_all_the_same(kind: type[Exception]) -> None:
    try:
        raise kind
    except kind as exc:
        error = payload.describe(exc)
    assert error.type.endswith(kind.__name__)
    assert error.message


@pytest.mark.parametrize(
    "text", ["nul \0", "half \ud800", "\x1b[31m red", "\U0001f600" * 100_000], ids=["nul", "half", "escape", "long"]
)
def test_the_texts_of_an_error_can_be_stored(text: str) -> None:
    try:
        raise ValueError(text)
    except ValueError as exc:
        error = payload.describe(exc)
    for part in dataclasses.astuple(error):
        assert storable(part)
        assert part


def test_huge_texts_are_cut_in_the_middle() -> None:
    huge = "a" * 100_000_000 + "é" * 100_000_000
    try:
        raise ValueError(huge)
    except ValueError as exc:
        error = payload.describe(exc)
    assert len(error.message.encode()) <= payload.MAX_MESSAGE + 200
    assert len(error.traceback.encode()) <= payload.MAX_TRACEBACK + 200
    assert error.message.startswith("aaa")
    assert "left out" in error.message


def causes(count: int) -> Iterator[BaseException]:
    previous: BaseException | None = None
    for n in range(count):
        current = ValueError(n)
        current.__cause__ = previous
        previous = current
        yield current


def test_a_long_chain_of_causes_is_bounded() -> None:
    *_, last = causes(3000)
    try:
        raise last
    except ValueError as exc:
        error = payload.describe(exc)
    assert error.message == "2999"
    assert len(error.traceback.encode()) <= payload.MAX_TRACEBACK + 200


# Progress.


@pytest.mark.parametrize(
    ("said", "stored"),
    [
        ((3, 10, "x"), {"done": 3, "total": 10, "message": "x"}),
        ((3, None, None), {"done": 3, "total": None, "message": None}),
        ((-1, -1, "\0\ud800"), {"done": 0, "total": 0, "message": "?\ufffd"[::-1]}),
        ((2**80, 2**80, ""), {"done": 2**63 - 1, "total": 2**63 - 1, "message": ""}),
    ],
    ids=["plain", "little", "hostile", "huge"],
)
def test_progress_is_made_storable(said: Any, stored: Any) -> None:
    assert json.loads(payload.encode_progress(*said)) == stored


def test_the_message_of_progress_is_bounded() -> None:
    assert len(payload.encode_progress(1, 2, "é" * 1_000_000)) < 1000
