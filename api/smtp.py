"""Send one mail, and tell failures that pass from those that do not."""

from email.message import EmailMessage
from uuid import UUID

import aiosmtplib

from api.settings import Settings


class HardBounce(Exception):
    """The mail server will never take this mail."""


def compose(settings: Settings, *, to: str, subject: str, text: str, job_id: UUID) -> EmailMessage:
    """A mail whose Message-ID follows from the job, so that a mail sent twice can be known for one mail."""
    message = EmailMessage()
    message["From"] = settings.mail_from
    message["To"] = to
    message["Subject"] = subject
    message["Message-ID"] = f"<{job_id}@{settings.mail_from.partition('@')[2]}>"
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(text)
    return message


async def send(settings: Settings, message: EmailMessage) -> None:
    """Hand the mail to the server.

    :raises HardBounce: if the server refuses it for good (5xx).
    """
    password = settings.smtp_password
    try:
        await aiosmtplib.send(
            message,
            hostname=settings.smtp_host,
            port=settings.smtp_port,
            username=settings.smtp_username,
            password=password.get_secret_value() if password else None,
            timeout=20,
        )
    except aiosmtplib.SMTPRecipientsRefused as exc:
        if all(refusal.code >= 500 for refusal in exc.recipients):
            raise HardBounce(f"the mail server refused the recipient: {exc.recipients[0].code}") from exc
        raise
    except aiosmtplib.SMTPAuthenticationError:
        raise  # our own mistake, which an operator mends
    except aiosmtplib.SMTPResponseException as exc:
        if exc.code >= 500:
            raise HardBounce(f"the mail server refused the mail: {exc.code}") from exc
        raise
