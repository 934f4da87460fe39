"""TLS to the database: an authority that signs certificates, and a server's end of TLS in front of a real Postgres.

The PostgreSQL in the wheel is built without TLS. So something in front of it does what such a server does: it answers
the request for TLS, shows its certificate, and hands on what was encrypted.
"""

import contextlib
import datetime as dt
import select
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import make_url

_SSL_REQUEST = bytes.fromhex("0000000804d2162f")
_DAY = dt.timedelta(days=1)


@dataclass(frozen=True)
class Identity:
    """The files of a certificate and its key."""

    certificate: Path
    key: Path


class Authority:
    """Signs certificates.

    :ivar file: its own certificate, which those have who believe it.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._key = folder, ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        certificate = (
            _draft(self._name, self._name, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.file = folder / f"{name}.crt"
        self.file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def identity(self, name: str) -> Identity:
        """A certificate for a host, or for who connects."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _draft(_name(name), self._name, key)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        made = Identity(self._folder / f"{name}.crt", self._folder / f"{name}.key")
        made.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        made.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return made


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


def _draft(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DAY)
        .not_valid_after(now + _DAY)
    )


class Door:
    """The server's end of TLS, on a port of loopback, in threads of its own.

    :ivar encrypted: connections whose client believed the certificate, and went on.
    :ivar refused: those whose client, or whose client's certificate, did not come through the handshake.
    :ivar plain: those on which anything but the request for TLS came in the clear.
    """

    def __init__(self, upstream: str, context: ssl.SSLContext | None) -> None:
        self.encrypted = self.refused = self.plain = 0
        self._upstream, self._context = make_url(upstream), context
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]

    def url(self, host: str, **query: str) -> str:
        """The upstream's address through this door."""
        through = self._upstream.set(drivername="postgresql", host=host, port=self.port, query=query)
        return through.render_as_string(hide_password=False)

    def serve(self) -> None:
        """Let clients in until the listening socket is closed."""
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                threading.Thread(target=self._meet, args=(client,), daemon=True).start()

    def close(self) -> None:
        """Let nobody in any more."""
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _meet(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            while (said := client.recv(8, socket.MSG_WAITALL)) == _SSL_REQUEST:
                if self._context is not None:
                    client.sendall(b"S")
                    self._encrypt(client, self._context)
                    return
                client.sendall(b"N")
            self.plain += bool(said)

    def _encrypt(self, client: socket.socket, context: ssl.SSLContext) -> None:
        try:
            inner = context.wrap_socket(client, server_side=True)
            first = inner.recv(65536)  # who does not believe a certificate of TLS 1.3 says so after the handshake
        except OSError:
            self.refused += 1
            return
        self.encrypted += bool(first)
        with inner, self._connected() as server:
            server.sendall(first)
            _hand_on(inner, server)

    def _connected(self) -> socket.socket:
        host, port = self._upstream.host or str(self._upstream.query["host"]), self._upstream.port or 5432
        if not host.startswith("/"):
            return socket.create_connection((host, port))
        server = socket.socket(socket.AF_UNIX)
        server.connect(f"{host}/.s.PGSQL.{port}")
        return server


def _hand_on(inner: ssl.SSLSocket, server: socket.socket) -> None:
    while True:
        ready = [inner] if inner.pending() else select.select([inner, server], [], [])[0]
        for source in ready:
            data = source.recv(65536)
            if not data:
                return
            (server if source is inner else inner).sendall(data)


@contextmanager
def door(upstream: str, identity: Identity | None, *, believes: Authority | None = None) -> Iterator[Door]:
    """A door in front of a Postgres, open while the context is.

    :param upstream: the server's own address.
    :param identity: what it shows; None: it has no TLS.
    :param believes: whose certificates it asks its clients for.
    """
    context = None
    if identity is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(identity.certificate, identity.key)
        if believes is not None:
            context.load_verify_locations(believes.file)
            context.verify_mode = ssl.CERT_REQUIRED
    opened = Door(upstream, context)
    serving = threading.Thread(target=opened.serve, daemon=True)
    serving.start()
    try:
        yield opened
    finally:
        opened.close()
        serving.join()
