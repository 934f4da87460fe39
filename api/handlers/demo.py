"""A slow job to watch, to kill, and to watch again: ``make crash``."""

import asyncio

from pydantic import BaseModel

from api.handlers.registry import outbox
from outbox import INJECTED, JobContext


class DemoDone(BaseModel):
    """Which claim of the job came to its end."""

    steps: int
    fence: int


@outbox.task(queue="demo", timeout=120)
async def demo_step(steps: int = 10, *, ctx: JobContext = INJECTED) -> DemoDone:
    """Take a second for each step."""
    for step in range(1, steps + 1):
        await asyncio.sleep(1)
        ctx.progress(step, steps)
    return DemoDone(steps=steps, fence=ctx.fence)
