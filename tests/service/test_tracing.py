"""A request's trace goes on in the jobs that it enqueues, and the status API says which it is."""

import httpx2

from tests.service.conftest import Work
from tests.service.test_orders import order

TRACE = "0af7651916cd43dd8448eb211c80319c"


async def test_jobs_are_of_the_trace_of_their_request(client: httpx2.AsyncClient, work: Work) -> None:
    client.headers["traceparent"] = f"00-{TRACE}-b7ad6b7169203331-01"
    client.headers["baggage"] = "customer=canary"
    _, jobs = await order(client)
    answers = [await client.get(f"/v1/jobs/{id}") for id in jobs.values()]
    assert {answer.json()["trace_id"] for answer in answers} == {TRACE}
    assert "canary" not in "".join(answer.text for answer in answers), "baggage is nobody's business"
    assert {job.trace_id for job in await work(*jobs.values())} == {TRACE}


async def test_a_request_that_brings_no_trace_begins_one(client: httpx2.AsyncClient) -> None:
    traces = set()
    for _ in range(2):
        _, jobs = await order(client)
        (trace,) = {(await client.get(f"/v1/jobs/{id}")).json()["trace_id"] for id in jobs.values()}
        assert len(trace) == 32
        traces.add(trace)
    assert len(traces) == 2
