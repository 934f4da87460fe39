"""Serve the API: ``python -m api``, at HOST and PORT. Arguments have the last word, and are called as uvicorn's.

It listens for other machines only if OUTBOX_ACCESS says who may ask. The application itself cannot know where it is
listened for it; started in another way it is as closed, but says so to each request only.
"""

import argparse
import sys
from typing import Final

import uvicorn
from pydantic import ValidationError

from api.app import create_app
from api.protocol import PatientProtocol
from api.settings import Settings, get_settings
from outbox.fastapi.access import is_loopback

MISCONFIGURED: Final = 78
"""The exit status that sysexits.h has for it."""


def main() -> int:
    """Serve until told to stop; 78 if the settings do not allow it."""
    try:
        settings = get_settings()
    except ValidationError as exc:
        print(exc, file=sys.stderr)
        return MISCONFIGURED
    options = _options(settings)
    if settings.outbox_access == "local" and not is_loopback(options.host):
        print(
            f"HOST={options.host} lets other machines in, and nobody has said who may ask for jobs: set "
            "OUTBOX_ACCESS=keys and make a key with `outbox keys create`, or HOST=127.0.0.1",
            file=sys.stderr,
        )
        return MISCONFIGURED
    uvicorn.run(
        create_app,
        factory=True,
        host=options.host,
        port=options.port,
        log_level=options.log_level,
        timeout_graceful_shutdown=options.timeout_graceful_shutdown,
        forwarded_allow_ips=settings.forwarded_allow_ips,
        http=PatientProtocol,
        ws="none",  # nobody here speaks it, and whoever began to would be beyond the protocol's deadline
    )
    return 0


def _options(settings: Settings) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m api", description="Serve the API.")
    parser.add_argument("--host", default=settings.host)
    parser.add_argument("--port", type=int, default=settings.port)
    parser.add_argument("--log-level", choices=uvicorn.config.LOG_LEVELS, default="info")
    parser.add_argument("--timeout-graceful-shutdown", type=int, metavar="SECONDS")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
