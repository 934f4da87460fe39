"""What the service talks to when it runs on one machine for somebody to try: a mail server, and the HTTP servers of the
warehouse and of the analysts.

``python -m api.sinks mail PORT DIRECTORY`` is a real SMTP server that delivers to nobody and keeps each mail in a file.
``python -m api.sinks web PORT DIRECTORY`` takes webhooks, checks their signatures, and shows the mails to a browser.
Both print what they get, and listen on loopback only.
"""

import asyncio
import os
import re
import signal
import sys
from datetime import UTC, datetime
from email import message_from_bytes, policy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final, NoReturn

from aiosmtpd.smtp import SMTP, Envelope, Session
from standardwebhooks import Webhook, WebhookVerificationError

HOST: Final = "127.0.0.1"
MAX_BODY: Final = 1024 * 1024


class Mailbox:
    """Keeps every mail in a file of its own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        """Take a mail; what aiosmtpd calls."""
        assert isinstance(envelope.content, bytes)
        to = ", ".join(envelope.rcpt_tos)
        name = f"{datetime.now(UTC):%Y%m%d-%H%M%S-%f}-{re.sub(r'[^A-Za-z0-9@._-]', '_', to)[:80]}.eml"
        (self._directory / name).write_bytes(envelope.content)
        subject = message_from_bytes(envelope.content, policy=policy.default)["Subject"]
        print(f"to {to}: {subject} ({name})", flush=True)
        return "250 OK"


async def serve_mail(port: int, directory: Path) -> None:
    """Take mails until the process is stopped."""
    loop = asyncio.get_running_loop()
    mailbox = Mailbox(directory)
    server = await loop.create_server(lambda: SMTP(mailbox, loop=loop, enable_SMTPUTF8=True), HOST, port)
    async with server:
        await server.serve_forever()


class Web(BaseHTTPRequestHandler):
    """POST takes a webhook; GET / lists the mails, GET /NAME shows one."""

    directory: Path
    webhook: Webhook | None = None
    seen: Final[set[str]] = set()

    def do_POST(self) -> None:
        """Take a webhook, once."""
        size = int(self.headers.get("content-length", 0))
        if size > MAX_BODY:
            return self._answer(413, "too large")
        body = self.rfile.read(size)
        signed = ""
        if self.webhook is not None and "webhook-signature" in self.headers:
            try:
                self.webhook.verify(body, dict(self.headers.items()))
            except WebhookVerificationError as exc:
                print(f"POST {self.path}: wrong signature ({exc})", flush=True)
                return self._answer(401, "wrong signature")
            signed = ", signature checked"
        id = self.headers.get("webhook-id", "")
        again = ", once more" if id in self.seen else ""
        self.seen.add(id)
        print(f"POST {self.path}{signed}{again}: {body.decode(errors='replace')}", flush=True)
        return self._answer(204)

    def do_GET(self) -> None:
        """Show the mails."""
        mails = {path.name: path for path in sorted(self.directory.glob("*.eml"), reverse=True)}
        if self.path == "/":
            links = "".join(f'<li><a href="/{name}">{name}</a>' for name in mails)
            page = f"<!doctype html><title>Mails</title><h1>{len(mails)} mails</h1><ul>{links}</ul>"
            return self._answer(200, page, "text/html")
        if (mail := mails.get(self.path.removeprefix("/"))) is None:
            return self._answer(404, "no such mail")
        message = message_from_bytes(mail.read_bytes(), policy=policy.default)
        head = "".join(f"{name}: {value}\n" for name, value in message.items())
        body = message.get_body(("plain",))
        return self._answer(200, f"{head}\n{body.get_content() if body else ''}")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as the class above has it
        """Say nothing: what matters has been printed."""

    def _answer(self, status: int, text: str = "", kind: str = "text/plain") -> None:
        content = text.encode()
        self.send_response(status)
        if status != 204:
            self.send_header("content-type", f"{kind}; charset=utf-8")
            self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def serve_web(port: int, directory: Path, secret: str | None) -> None:
    """Take webhooks until the process is stopped."""
    Web.directory = directory
    Web.webhook = Webhook(secret) if secret else None
    ThreadingHTTPServer((HOST, port), Web).serve_forever()


def main() -> None:
    """``mail`` or ``web``, the port, and the directory of the mails."""
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, _leave)
    kind, port, directory = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    directory.mkdir(parents=True, exist_ok=True)
    if kind == "mail":
        asyncio.run(serve_mail(port, directory))
    else:
        serve_web(port, directory, os.environ.get("WAREHOUSE_SECRET"))


def _leave(*_: object) -> NoReturn:
    sys.exit(0)


if __name__ == "__main__":
    main()
