"""An import that says how far it is, and goes on there when it is broken off."""

from outbox import INJECTED, JobContext, Outbox, Retry

outbox = Outbox()
stored: list[int] = []


@outbox.task(retry=Retry(max_attempts=3, base=0))
async def import_rows(rows: list[int], *, ctx: JobContext = INJECTED) -> int:
    done = ctx.checkpoint or 0
    for n, row in enumerate(rows[done:], start=done + 1):
        stored.append(row)
        ctx.keep(n)
        ctx.progress(n, len(rows), f"row {n}")
        if n == 2 and ctx.attempt == 1:
            raise ConnectionError("the line went dead")
    return len(rows)
