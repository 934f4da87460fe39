"""Tasks of a worker in a process of its own, which is scraped while it works."""

import os
import time
from pathlib import Path

from prometheus_client import Counter

from outbox import INJECTED, JobContext, Outbox, Retry

GO = "METERED_GO"
"""Names the variable with the file that lets ``blocks`` end."""

outbox = Outbox()
receipts = Counter("shop_receipts", "Receipts that were sent.")


@outbox.task(queue="mail")
async def good(card: str = "", *, ctx: JobContext = INJECTED) -> str:
    """Succeed, and count it in a metric of the application's own."""
    receipts.inc()
    return card


@outbox.task(queue="mail", retry=Retry(max_attempts=2, base=0, cap=0))
async def bad(card: str = "") -> None:
    """Fail twice."""
    raise ValueError(card)


@outbox.task(queue="mail")
async def blocks() -> None:
    """Hold the event loop until the test lets it go."""
    go = Path(os.environ[GO])
    while not go.exists():  # noqa: ASYNC240 - as below
        time.sleep(0.01)  # noqa: ASYNC251 - that is the mistake under test
