"""Events for the analysts. The event's id is the job's, by which a repetition is counted once."""

from datetime import datetime
from uuid import UUID

from api import webhooks
from api.handlers.registry import SettingsDep, outbox
from outbox import INJECTED, Cancel, JobContext, Limit, Retry


# The analysts' service takes so many events and no more; all workers together keep to that.
@outbox.task(
    queue="webhooks",
    retry=Retry(max_attempts=6, give_up_on=(webhooks.WebhookRefused,)),
    timeout=30,
    limit=Limit(rate=50, burst=50),
)
async def record_order(
    order_id: UUID, total_cents: int, at: datetime, *, settings: SettingsDep = INJECTED, ctx: JobContext = INJECTED
) -> None:
    """Send that an order was placed. It names no customer."""
    if settings.analytics_url is None:
        raise Cancel("ANALYTICS_URL is not set")
    await webhooks.send(
        settings.analytics_url,
        {"event": "order placed", "order_id": str(order_id), "total_cents": total_cents, "at": at.isoformat()},
        id=str(ctx.id),
        allowed_hosts=settings.webhook_allowed_hosts,
    )
