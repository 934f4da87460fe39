"""What a job carries along of the trace around it, and what becomes of headers that nobody should have written."""

import asyncio
import contextvars
import json
import subprocess
import sys

import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import TracerProvider

from outbox.newjob import NewJob, Options
from outbox.trace import MAX_HEADERS, headers, resume, trace_id

tracer = TracerProvider().get_tracer("tests")


def current() -> str:
    return trace.format_trace_id(trace.get_current_span().get_span_context().trace_id)


def test_a_job_carries_the_trace_in_which_it_was_made() -> None:
    with tracer.start_as_current_span("request") as span:
        job = NewJob("send", "{}", Options())
        known = trace.format_trace_id(span.get_span_context().trace_id)
    assert job.headers is not None
    assert trace_id(json.loads(job.headers)) == known


def test_without_a_trace_there_is_nothing_to_carry() -> None:
    assert NewJob("send", "{}", Options()).headers is None


def test_baggage_is_carried_without_a_trace_too() -> None:
    token = context.attach(baggage.set_baggage("customer", "42"))
    try:
        assert json.loads(headers() or "") == {"baggage": "customer=42"}
    finally:
        context.detach(token)


def test_baggage_that_is_too_large_stays_behind() -> None:
    with tracer.start_as_current_span("request"):
        carried = context.get_current()
        for n in range(4):
            carried = baggage.set_baggage(f"large{n}", "x" * 2000, carried)
        token = context.attach(carried)
        try:
            text = headers() or ""
        finally:
            context.detach(token)
    assert len(text) <= MAX_HEADERS
    assert list(json.loads(text)) == ["traceparent"]


def test_a_task_goes_on_in_the_trace_and_the_next_one_does_not() -> None:
    seen: dict[str | None, str] = {}

    async def perform(carried: str | None) -> None:
        resume(carried)
        seen[carried] = current()

    async def worker() -> None:
        await asyncio.create_task(perform(carried))
        await asyncio.create_task(perform(None))

    with tracer.start_as_current_span("request") as span:
        carried = headers()
        known = trace.format_trace_id(span.get_span_context().trace_id)
    asyncio.run(worker())
    assert seen == {carried: known, None: "0" * 32}


@pytest.mark.parametrize(
    "planted",
    [
        "{}",
        '{"traceparent": 7}',
        '{"traceparent": "00-<script>-b7ad6b7169203331-01"}',
        '{"traceparent": "00-00000000000000000000000000000000-b7ad6b7169203331-01"}',
        '{"traceparent": null, "baggage": ["a"], "tracestate": {"b": 1}}',
        '{"x": ' + "[" * 4000 + "]" * 4000 + "}",
        '{"x": ' + "9" * 5000 + "}",
    ],
)
def test_headers_that_name_no_trace_name_none(planted: str) -> None:
    def look() -> str:
        resume(planted)
        return current()

    assert contextvars.copy_context().run(look) == "0" * 32
    if len(planted) < 200:
        assert trace_id(json.loads(planted)) is None


def test_where_nobody_traces_opentelemetry_is_not_even_imported() -> None:
    said = "import sys, outbox.worker, outbox.cli; print([name for name in sys.modules if 'opentelemetry' in name])"
    assert subprocess.run([sys.executable, "-c", said], capture_output=True, check=True, text=True).stdout == "[]\n"
