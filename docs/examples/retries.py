"""Trying again, later, or no more."""

from datetime import timedelta

from outbox import INJECTED, Cancel, JobContext, Outbox, Retry, Snooze

outbox = Outbox()


class Unreachable(Exception):
    pass


@outbox.task(retry=Retry(max_attempts=5, base=1, cap=3600, give_up_on=(ValueError,)))
async def deliver(parcel: str, *, ctx: JobContext = INJECTED) -> str:
    if parcel == "no longer wanted":
        raise Cancel("the customer called")  # ends as cancelled
    if parcel == "nobody at home" and ctx.fence == 1:
        raise Snooze(timedelta(seconds=0.1))  # later; no attempt is charged
    if parcel == "too many today" and ctx.fence == 1:
        raise Retry.after(0.1)  # as the other side asked; no attempt is charged
    if parcel == "no address":
        raise ValueError(parcel)  # fails for good
    if parcel == "road closed" and ctx.attempt == 1:
        raise Unreachable  # tried again: an attempt is charged
    return f"delivered at attempt {ctx.attempt}"
