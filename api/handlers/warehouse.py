"""Tell the warehouse about orders. Its webhook-id is the job's, by which the warehouse knows a repetition."""

from uuid import UUID

from api import webhooks
from api.database import sessions
from api.handlers.registry import SettingsDep, outbox
from api.models import Order
from outbox import INJECTED, Cancel, JobContext, Retry


@outbox.task(
    queue="webhooks",
    # A warehouse may be closed over the weekend: about four days.
    retry=Retry(max_attempts=20, base=5.0, cap=6 * 3600.0, give_up_on=(webhooks.WebhookRefused,)),
    timeout=30,
)
async def announce_order(order_id: UUID, *, settings: SettingsDep = INJECTED, ctx: JobContext = INJECTED) -> None:
    """Send the order as a signed webhook (Standard Webhooks)."""
    if settings.warehouse_url is None:
        raise Cancel("WAREHOUSE_URL is not set")
    async with sessions() as session:  # closed before the warehouse is called: no transaction waits for it
        order = await session.get(Order, order_id)
    if order is None:
        raise Cancel("the order is gone")
    lines = [{"sku": line.sku, "quantity": line.quantity} for line in order.lines]
    await webhooks.send(
        settings.warehouse_url,
        {
            "type": "order.placed",
            "timestamp": order.created_at.isoformat(),
            "data": {"order_id": str(order.id), "lines": lines},
        },
        id=str(ctx.id),
        secret=settings.warehouse_secret,
        allowed_hosts=settings.webhook_allowed_hosts,
    )
