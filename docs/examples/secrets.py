"""A link that logs somebody in: its token is nobody else's business."""

import base64
import os

from pydantic import SecretStr

from outbox import Outbox
from outbox.secret import Keyring

keys = {"2026-11": base64.b64decode(os.environ["OUTBOX_SECRET_2026_11"])}  # 32 random bytes each
outbox = Outbox(secrets=Keyring(keys, current="2026-11"))


@outbox.task(queue="mail")
async def send_login_link(email: str, token: SecretStr) -> str:
    link = f"https://shop.example.com/login/{token.get_secret_value()}"
    return f"{len(link)} characters sent to {email}"
