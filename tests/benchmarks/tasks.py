"""The handlers that are measured: they do nothing, so that the queue is what is measured."""

import time

from outbox import Outbox

outbox = Outbox()


@outbox.task()
async def noop(n: int) -> dict[str, int]:
    """The least that a job with an argument and a stored result can do."""
    return {"ok": n}


@outbox.task(queue="latency")
async def stamp() -> float:
    """When the handler started, by the clock that the benchmark reads too."""
    return time.time()
