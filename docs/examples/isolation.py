"""A handler in a process that can be killed, with limits of time and memory: docs/isolation.md shows this file."""

from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

from outbox import Outbox, Retry
from outbox.errors import SoftTimeout

outbox = Outbox()


@outbox.task(
    isolation="process",
    retry=Retry(max_attempts=3),
    soft_timeout=timedelta(seconds=25),
    timeout=timedelta(seconds=30),
    memory_limit=512 * 2**20,
)
def render(pages: int) -> str:
    with TemporaryDirectory() as folder:  # removed at the soft limit, too
        done = 0
        try:
            for page in range(pages):
                Path(folder, f"{page}.txt").write_text(f"page {page}")
                done += 1
        except SoftTimeout:
            return f"{done} of {pages} pages, for want of time"
        return f"{done} pages"
