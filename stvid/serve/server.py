"""Runs an application until a signal ends it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from stvid.errors import InputError
from stvid.exits import stop_on_signals
from stvid.serve.connections import HttpConnection, SocketConnection
from stvid.serve.options import address_text
from stvid.serve.service import Service

BACKLOG = 128  # connections that the system keeps until they are accepted


def run_server(
    app: FastAPI, listener: socket.socket, *, on_start: Callable[[str], object] = lambda address: None
) -> None:
    """Answers requests until Ctrl-C or SIGTERM; then running requests may finish, for a limited time.

    Args:
        app: what `create_app` returns.
        listener: a bound socket; it is closed in the end.
        on_start: called with the address once requests are answered.

    Raises:
        InputError: another program has taken the port meanwhile.
    """
    address = address_text(listener)
    app.state.service.warm_up()
    try:
        listener.listen(BACKLOG)
    except OSError as error:
        raise InputError(f"{address}: the port is in use meanwhile; take another: --port") from error
    server = Server(app, on_start=lambda: on_start(address))
    try:
        with stop_on_signals():  # uvicorn raises its signals again when it is done
            server.run(sockets=[listener])
    finally:
        listener.close()
        server.service.close()  # also after a second Ctrl-C, when uvicorn ends at once


class Server(uvicorn.Server):
    """uvicorn with the settings of the service.

    Args:
        app: what `create_app` returns.
        on_start: called once requests are answered.
    """

    def __init__(self, app: FastAPI, *, on_start: Callable[[], object] = lambda: None):
        self.service: Service = app.state.service
        self.on_start = on_start
        options = self.service.options
        config = uvicorn.Config(
            app,
            lifespan="on",
            http=HttpConnection,  # its parser limits the size of a header; the other one of uvicorn does not
            log_config=None,  # stvid's own, which escapes control characters
            log_level="warning",
            access_log=False,  # the addresses may hold a token; /metrics counts
            server_header=False,
            timeout_graceful_shutdown=max(round(options.stop_seconds), 1),
            ws=SocketConnection,  # takes the next message of a socket only when the last one was read
            ws_max_size=2 * options.max_frame,  # above this, the connection is cut without a word
            ws_per_message_deflate=False,  # JPEGs do not become smaller
        )
        super().__init__(config)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.on_start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.service.is_stopping = True
        super().handle_exit(sig, frame)
