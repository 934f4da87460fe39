"""Mails to customers. A mail sent twice has the same Message-ID, by which mail servers and readers know it."""

from uuid import UUID

from pydantic import BaseModel, EmailStr

from api import smtp
from api.database import sessions
from api.handlers.registry import SettingsDep, outbox
from api.models import Order, User
from outbox import INJECTED, Cancel, JobContext, Retry
from outbox.batch import BatchSummary

MAILS = Retry(max_attempts=10, base=5.0, cap=3600.0, give_up_on=(smtp.HardBounce,))


class Sent(BaseModel):
    """The mail server has taken the mail."""

    to: EmailStr
    message_id: str


@outbox.task(queue="mail", retry=MAILS, timeout=60)
async def send_welcome(user_id: UUID, *, settings: SettingsDep = INJECTED, ctx: JobContext = INJECTED) -> Sent:
    """Welcome somebody who signed up."""
    async with sessions() as session:  # closed before the mail server is called: no transaction waits for it
        user = await session.get(User, user_id)
    if user is None:
        raise Cancel("the user has left before the mail was sent")
    text = f"Hello {user.name},\n\nwelcome! You will find us at {settings.public_url}\n"
    message = smtp.compose(settings, to=user.email, subject="Welcome", text=text, job_id=ctx.id)
    await smtp.send(settings, message)
    return Sent(to=user.email, message_id=message["Message-ID"])


@outbox.task(queue="mail", retry=MAILS, timeout=60)
async def send_receipt(order_id: UUID, *, settings: SettingsDep = INJECTED, ctx: JobContext = INJECTED) -> Sent:
    """Tell a customer that the order has arrived, and what it costs."""
    async with sessions() as session:
        order = await session.get(Order, order_id)
    if order is None:
        raise Cancel("the order is gone")
    articles = "".join(
        f"{line.quantity:>6} x {line.sku:<30} {cents(line.unit_price_cents):>12}\n" for line in order.lines
    )
    text = f"Thank you for your order {order.id}.\n\n{articles}\nTotal: {cents(order.total_cents)}\n"
    message = smtp.compose(settings, to=order.email, subject=f"Your order {order.id}", text=text, job_id=ctx.id)
    await smtp.send(settings, message)
    return Sent(to=order.email, message_id=message["Message-ID"])


@outbox.task(queue="mail", retry=MAILS, timeout=60)
async def send_thanks(order_id: UUID, *, settings: SettingsDep = INJECTED, ctx: JobContext = INJECTED) -> None:
    """Tell a customer that the money has arrived."""
    async with sessions() as session:
        order = await session.get(Order, order_id)
    if order is None:
        raise Cancel("the order is gone")
    text = f"Your order {order.id} is paid. Thank you.\n"
    subject = f"Paid: order {order.id}"
    await smtp.send(settings, smtp.compose(settings, to=order.email, subject=subject, text=text, job_id=ctx.id))


@outbox.task(queue="mail", priority=0, retry=MAILS, timeout=60)
async def send_news(
    user_id: UUID, subject: str, text: str, *, settings: SettingsDep = INJECTED, ctx: JobContext = INJECTED
) -> None:
    """Tell somebody who signed up what everybody is told."""
    async with sessions() as session:
        user = await session.get(User, user_id)
    if user is None:
        raise Cancel("the user has left")
    message = smtp.compose(
        settings, to=user.email, subject=subject, text=f"Hello {user.name},\n\n{text}\n", job_id=ctx.id
    )
    await smtp.send(settings, message)


@outbox.task(queue="mail", retry=MAILS, timeout=60)
async def report_mailing(batch: BatchSummary, *, settings: SettingsDep = INJECTED, ctx: JobContext = INJECTED) -> None:
    """Tell the shop how a mailing went."""
    others = f"{batch.failed} failed, {batch.cancelled} were cancelled"
    text = f"{batch.succeeded} of {batch.total} mails were sent, {others}.\n"
    subject = f"Mailing done: {batch.name}"
    await smtp.send(settings, smtp.compose(settings, to=settings.mail_from, subject=subject, text=text, job_id=ctx.id))


def cents(amount: int) -> str:
    """An amount in cents, as people write it."""
    return f"{amount // 100:,}.{amount % 100:02}"
