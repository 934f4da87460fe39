"""What the encoders let through, real jsonb takes and gives back; nothing else is claimed of it."""

import json
from decimal import Decimal
from typing import Any

import asyncpg
from hypothesis import HealthCheck, given, settings
from pydantic import TypeAdapter

from outbox import payload
from outbox.errors import PayloadInvalid
from tests.unit.values import anything, text

ANY: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])
MANY = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def as_jsonb_has_it(value: Any) -> Any:
    """jsonb keeps every decimal digit but not how the number was written: 1e22 comes back as an integer."""
    if isinstance(value, float):
        exact = Decimal(repr(value))
        return int(exact) if exact == exact.to_integral_value() else value
    if isinstance(value, list):
        return [as_jsonb_has_it(each) for each in value]
    if isinstance(value, dict):
        return {key: as_jsonb_has_it(each) for key, each in value.items()}
    return value


async def stored(db: asyncpg.Connection, raw: str) -> Any:
    return json.loads(await db.fetchval("select ($1::text)::jsonb::text", raw))


@MANY
@given(anything)
async def test_arguments_that_are_not_refused_are_stored_exactly(db: asyncpg.Connection, value: Any) -> None:
    try:
        raw = payload.encode_arguments("t", ANY, {"v": value})
    except PayloadInvalid:
        return
    assert await stored(db, raw) == {"v": as_jsonb_has_it(value)}


@MANY
@given(anything)
async def test_every_result_is_stored(db: asyncpg.Connection, value: Any) -> None:
    raw, _error = payload.encode_result(None, value)
    if raw is not None:
        assert await stored(db, raw) == as_jsonb_has_it(json.loads(raw))


@MANY
@given(text, text)
async def test_every_error_and_progress_is_stored(db: asyncpg.Connection, name: str, message: str) -> None:
    try:
        raise ValueError(message) from KeyError(name)
    except ValueError as exc:
        error = payload.describe(exc)
    assert await stored(db, json.dumps([error.type, error.message, error.traceback]))
    assert await stored(db, payload.encode_progress(1, 2, message))
