"""A TCP proxy in front of Postgres that counts connections, and cuts them where a test says."""

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from enum import Enum, auto


class Cut(Enum):
    """Where a connection ends."""

    NEVER = auto()
    BEFORE_COMMIT = auto()
    """The server never gets to see the COMMIT."""
    AFTER_COMMIT = auto()
    """The server has answered the COMMIT; the client never gets to see it."""
    WITH_COMMIT = auto()
    """The COMMIT is on its way, and nobody knows how far it gets."""


_SSL_REQUEST = 80877103


class Proxy:
    """Between one client process and the server.

    :ivar connections: how many were asked for, whatever became of them.
    :ivar cut: what happens to a connection from now on.
    :ivar cuts: how many were cut.
    """

    def __init__(self, upstream: int) -> None:
        self.port = 0
        self.connections = 0
        self.cut = Cut.NEVER
        self.cuts = 0
        self._upstream = upstream

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["Proxy"]:
        """Serve while the context is open."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = int(server.sockets[0].getsockname()[1])
        try:
            yield self
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._upstream)
        except OSError:
            writer.transport.abort()
            return
        link = _Link(reader, writer, up_reader, up_writer)
        down = asyncio.create_task(link.answers())
        try:
            await link.requests(self._decide)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            down.cancel()
            await asyncio.gather(down, return_exceptions=True)
            link.abort()

    def _decide(self) -> Cut:
        self.cuts += self.cut is not Cut.NEVER
        return self.cut


class _Link:
    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        up_reader: asyncio.StreamReader,
        up_writer: asyncio.StreamWriter,
    ) -> None:
        self._reader, self._writer = reader, writer
        self._up_reader, self._up_writer = up_reader, up_writer
        self._silent = False
        self._answered = asyncio.Event()

    async def requests(self, decide: Callable[[], Cut]) -> None:
        """From the client to the server, message by message."""
        ready = False
        while True:
            kind = await self._reader.readexactly(1) if ready else b""
            head = await self._reader.readexactly(4)
            body = await self._reader.readexactly(struct.unpack("!i", head)[0] - 4)
            if not ready:
                ready = struct.unpack("!i", body[:4])[0] != _SSL_REQUEST
            elif kind == b"Q" and body.upper().startswith(b"COMMIT"):
                cut = decide()
                if cut is Cut.BEFORE_COMMIT:
                    return
                self._silent = cut is Cut.AFTER_COMMIT
                self._up_writer.write(kind + head + body)
                await self._up_writer.drain()
                if cut is Cut.AFTER_COMMIT:
                    await self._answered.wait()
                if cut is not Cut.NEVER:
                    return
                continue
            self._up_writer.write(kind + head + body)
            await self._up_writer.drain()

    async def answers(self) -> None:
        """From the server to the client, unread."""
        try:
            while data := await self._up_reader.read(65536):
                if self._silent:
                    self._answered.set()
                    continue
                self._writer.write(data)
                await self._writer.drain()
        except OSError:
            pass
        self._writer.transport.abort()

    def abort(self) -> None:
        """Cut both ways, without a goodbye."""
        self._writer.transport.abort()
        self._up_writer.transport.abort()
