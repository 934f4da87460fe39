"""A worker's own small HTTP server: its figures for Prometheus, and whether it is alive and ready.

It answers from threads of its own, so that it does even while a handler blocks the event loop. It knows no keys: it is
off unless it is given a port, and then listens at this machine only unless it is told otherwise.
"""

import socket
import threading
from collections.abc import Iterable
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from outbox import events
from outbox.errors import DeclarationError
from outbox.exposition import CONTENT_TYPE, WorkerCollector, encode
from outbox.worker import Worker

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

PATIENCE = 10.0
"""Seconds for which a connection may say nothing."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    allow_reuse_port = False  # a port that is taken is an error, and no share in it


class _ServerV6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = PATIENCE

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Say nothing: whoever asks does so every few seconds."""


def start(worker: Worker, host: str, port: int) -> WSGIServer:
    """Answer at this address from now on, until the process ends.

    :return: the server, for who wants to ``shutdown`` it sooner.
    :raises DeclarationError: if nobody can listen there.
    """
    server_class = _ServerV6 if ":" in host else _Server
    try:
        server = make_server(host, port, _application(worker), server_class, _Handler)
    except (OSError, UnicodeError) as exc:  # the second: what no host can be called
        reason = getattr(exc, "strerror", None) or exc
        raise DeclarationError(
            f"metrics: nobody can listen at {host}, port {port}: {reason}; "
            "choose another --metrics-port or --metrics-host"
        ) from exc
    threading.Thread(target=server.serve_forever, name="outbox-probe", daemon=True).start()
    events.emit(events.INFO, "probe_started", host=host, port=port)
    return server


def _application(worker: Worker) -> "WSGIApplication":
    collector = WorkerCollector(worker.meter)

    def answer(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        content_type = "text/plain; charset=utf-8"
        match environ["PATH_INFO"]:
            case "/metrics":
                status, body, content_type = "200 OK", encode(collector), CONTENT_TYPE
            case "/livez":
                status, body = "200 OK", b"ok\n"
            case "/readyz" if worker.is_ready:
                status, body = "200 OK", b"ok\n"
            case "/readyz":
                status, body = "503 Service Unavailable", b"no heartbeat within the lease\n"
            case _:
                status, body = "404 Not Found", b"see /metrics, /livez and /readyz\n"
        start_response(status, [("Content-Type", content_type), ("Content-Length", str(len(body)))])
        return [body]

    return answer
