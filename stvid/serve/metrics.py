"""What Prometheus reads from `/metrics`. No label comes from a client."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stvid.serve.security import route_path

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """Counters of one service, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "stvid_requests", "requests that were answered", ("endpoint", "status"), registry=registry
        )
        self.seconds = Histogram(
            "stvid_request_seconds", "time from request to answer", ("endpoint",), registry=registry, buckets=SECONDS
        )
        self.batch_size = Histogram(
            "stvid_batch_size", "views in a call of the model", registry=registry, buckets=SIZES
        )
        self.batch_seconds = Histogram(
            "stvid_batch_seconds", "time of a call of the model", registry=registry, buckets=SECONDS
        )
        self.queue = Gauge("stvid_queue_length", "requests that wait for the model", registry=registry)
        self.active = Gauge("stvid_requests_in_work", "requests that are worked on", registry=registry)
        self.uploads = Gauge("stvid_uploads_in_progress", "files that are being received", registry=registry)
        self.uploaded = Counter("stvid_uploaded_bytes", "bytes of files that were received", registry=registry)
        self.streams = Gauge("stvid_streams_open", "sockets that send frames", registry=registry)
        self.frames = Counter("stvid_stream_frames", "frames that were answered", registry=registry)

    def add_batch(self, size: int, seconds: float) -> None:
        """Counts a call of the model."""
        self.batch_size.observe(size)
        self.batch_seconds.observe(seconds)

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self.registry)


class CountRequests:
    """ASGI middleware that counts requests and measures their time.

    Args:
        app: the application.
        metrics: where to count.
        endpoints: returns the paths that exist; all others are counted as `other`.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics, endpoints: Callable[[], Collection[str]]):
        self.app, self.metrics, self.endpoints = app, metrics, endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, began = 500, time.perf_counter()

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watch)
        finally:
            path = route_path(scope)
            endpoint = path if path in self.endpoints() else "other"
            self.metrics.requests.labels(endpoint, str(status)).inc()
            self.metrics.seconds.labels(endpoint).observe(time.perf_counter() - began)
