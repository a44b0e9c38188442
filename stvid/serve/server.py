"""Runs an application until a signal ends it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from stvid.errors import InputError
from stvid.exits import stop_on_signals
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
    service: Service = app.state.service
    address = address_text(listener)
    try:
        listener.listen(BACKLOG)
    except OSError as error:
        raise InputError(f"{address}: the port is in use meanwhile; take another: --port") from error
    config = uvicorn.Config(
        app,
        lifespan="on",
        log_config=None,  # stvid's own, which escapes control characters
        log_level="warning",
        access_log=False,  # the addresses may hold a token; /metrics counts
        server_header=False,
        timeout_graceful_shutdown=max(round(service.options.stop_seconds), 1),
        ws="websockets-sansio",  # takes the next message of a socket only when the last one was read
        ws_max_size=service.options.max_frame,
        ws_per_message_deflate=False,  # JPEGs do not become smaller
    )
    server = _Server(config, service, on_start=lambda: on_start(address))
    try:
        with stop_on_signals():  # uvicorn raises its signals again when it is done
            server.run(sockets=[listener])
    finally:
        listener.close()
        service.close()  # also after a second Ctrl-C, when uvicorn ends at once


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, service: Service, *, on_start: Callable[[], object]):
        super().__init__(config)
        self.service, self.on_start = service, on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.on_start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.service.is_stopping = True
        super().handle_exit(sig, frame)
