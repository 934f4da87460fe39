"""The trace in which a job was enqueued: the job carries it along, and its handler goes on in it.

What is carried is what OpenTelemetry's propagators write, by default ``traceparent``, ``tracestate`` and ``baggage``.
Where nobody traces there is nothing to carry and nothing of this costs anything: not even OpenTelemetry is imported,
which would take a tenth of the time in which a process starts.
"""

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.context import Context

MAX_HEADERS = 8000
"""Characters of JSON. Beyond it baggage stays behind, and a trace whose state is larger than that."""


def headers() -> str | None:
    """What a job carries along that is enqueued here and now, as JSON text; None if nothing."""
    context = sys.modules.get("opentelemetry.context")
    if context is None or not context.get_current():
        return None
    from opentelemetry import propagate

    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    carrier = {name: value for name, value in carrier.items() if value.isascii() and value.isprintable()}
    for given in (carrier, {name: value for name, value in carrier.items() if name == "traceparent"}):
        text = json.dumps(given)
        if given and len(text) <= MAX_HEADERS:
            return text
    return None


def resume(headers: str | None) -> None:
    """Go on in the trace that a job carries, in the rest of this asyncio task.

    Whatever the headers hold, it does not raise: rows are written by others too.
    """
    if headers is not None and (carried := _context(_read(headers))) is not None:
        from opentelemetry import context

        context.attach(carried)


def trace_id(headers: Mapping[str, Any] | None) -> str | None:
    """Its id, 32 hexadecimal digits; None if the headers of a job name none."""
    carried = None if headers is None else _context(headers)
    if carried is None:
        return None
    from opentelemetry.trace import format_trace_id, get_current_span

    span = get_current_span(carried).get_span_context()
    return format_trace_id(span.trace_id) if span.is_valid else None


def _read(headers: str) -> dict[str, Any]:
    try:
        read: dict[str, Any] = json.loads(headers)
    except (ValueError, RecursionError):  # more digits or depth than Python reads
        return {}
    return read


def _context(headers: Mapping[str, Any]) -> "Context | None":
    from opentelemetry.context import Context
    from opentelemetry.propagate import extract

    try:
        return extract({name: value for name, value in headers.items() if isinstance(value, str)}, Context())
    except Exception:  # noqa: BLE001 - a propagator of the user's must not keep a job from running
        return None
