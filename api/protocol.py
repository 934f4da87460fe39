"""Connections on which no request comes are closed: uvicorn by itself waits for the rest of one for ever.

So that nobody holds a connection for nothing, by the thousand. What is slow in another way is bounded elsewhere: a body
by ``outbox.fastapi``, a connection that waits for its next request by uvicorn.
"""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

PATIENCE = 10.0
"""Seconds in which a request must have come up to its body, since the connection was made or its last one answered."""


class PatientProtocol(HttpToolsProtocol):
    """uvicorn's own, with a deadline."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._wait_or_not()

    def data_received(self, data: bytes) -> None:
        """Go on waiting, unless a request is under way now."""
        super().data_received(data)
        self._wait_or_not()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        super().connection_lost(exc)
        self._stop_waiting()

    def _wait_or_not(self) -> None:
        # uvicorn has a cycle as soon as the headers are complete. It has a deadline of its own for what follows an
        # answer, and gives that up at the first byte.
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and not cycle.response_complete:
            self._stop_waiting()
        elif self._deadline is None and not self.transport.is_closing():
            self._deadline = self.loop.call_later(PATIENCE, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
