"""Connections: what a client may do to one before the application has a request or a message to answer."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame

HEADER_SECONDS = 10.0  # in which a client sends the header of a request
MAX_FRAMES = 4096  # pings, pongs and fragments until a message of a socket is complete
PIECE = 4096  # bytes that are read before the frames in them are counted


class HttpConnection(H11Protocol):
    """A connection that is cut if no header of a request comes."""

    header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def handle_websocket_upgrade(self, event: Any) -> None:
        super().handle_websocket_upgrade(event)
        self._stop_timer()
        socket: Any = self.transport.get_protocol()
        if not socket.handshake_initiated:  # uvicorn would leave it without an answer
            self.send_400_response("Invalid request for a socket.")

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Starts the timer if a request is waited for, unless it runs already; stops it if one is answered."""
        if self.transport.get_protocol() is not self:
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_timer()
        elif self.header_timer is None:
            self.header_timer = self.loop.call_later(HEADER_SECONDS, self.transport.abort)

    def _stop_timer(self) -> None:
        if self.header_timer is not None:
            self.header_timer.cancel()
            self.header_timer = None


class SocketConnection(WebSocketsSansIOProtocol):
    """A socket that is cut if a client sends very many small frames and no message.

    Others would wait while the frames are read, and the answers to pings pile up if the client does not read them.
    """

    num_frames = 0  # since the last message

    def data_received(self, data: bytes) -> None:
        for start in range(0, len(data), PIECE):
            if self.transport.is_closing():
                return
            super().data_received(data[start : start + PIECE])

    def handle_cont(self, event: Frame) -> None:
        self._count()
        super().handle_cont(event)

    def handle_ping(self) -> None:
        self._count()
        super().handle_ping()

    def handle_pong(self, event: Frame) -> None:
        self._count()
        super().handle_pong(event)

    def send_receive_event_to_app(self) -> None:
        self.num_frames = 0
        super().send_receive_event_to_app()

    def _count(self) -> None:
        self.num_frames += 1
        if self.num_frames > MAX_FRAMES:
            self.transport.abort()
