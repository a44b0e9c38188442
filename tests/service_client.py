"""What the tests of the service share: a service in this process, and clients of it."""

import asyncio
import contextlib
import math
import time

from fastapi.testclient import TestClient

from stvid.serve.app import create_app
from stvid.serve.options import ServeOptions

LOCAL = "http://127.0.0.1:8000"
TOKEN = "a-secret-of-the-tests"
BOUNDARY = "multipart/form-data; boundary=x"
PART = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.mp4"\r\n\r\n'


@contextlib.contextmanager
def serving(recognizer, **options):
    """A client of a service that runs in this process, and the service."""
    app = create_app(recognizer, ServeOptions(**options))
    with TestClient(app, base_url=LOCAL, raise_server_exceptions=False) as client:
        yield client, app.state.service
        assert not list(app.state.service.folder.iterdir())  # no upload is left, whatever the test did
        folder = app.state.service.folder
    assert not folder.exists()


def only_full_batches(service):
    """The model waits for a full batch, however long that takes."""
    service.batcher.max_delay, service.batcher.num_clients = 3600, lambda: math.inf


def upload(path, name=None):
    return {"file": (name or path.name, path.read_bytes())}


class Call:
    """One request to an application without a server: its events, in the order of the test."""

    def __init__(self, app, url, receive, headers):
        path, _, query = url.partition("?")
        self.scope = {
            "type": "http", "http_version": "1.1", "method": "POST", "scheme": "http", "path": path,
            "raw_path": path.encode(), "query_string": query.encode(), "root_path": "", "server": ("127.0.0.1", 8000),
            "client": ("127.0.0.1", 1), "headers": [(b"host", b"127.0.0.1:8000"), *headers],
        }  # fmt: skip
        self.app, self.receive, self.status, self.body = app, receive, None, b""

    async def send(self, message):
        self.status = message.get("status", self.status)
        self.body += message.get("body", b"")

    async def run(self):
        async with self.app.router.lifespan_context(self.app):
            await self.app(self.scope, self.receive, self.send)
            assert not list(self.app.state.service.folder.iterdir())
        return self


def call(app, url, *, pieces=(), then=None):
    """The answer to a form whose body comes in pieces; `then()` is what comes after them."""
    pieces = iter(pieces)

    async def receive():
        for piece in pieces:
            return {"type": "http.request", "body": piece, "more_body": True}
        return await then()

    headers = [(b"content-type", BOUNDARY.encode())]
    return asyncio.run(Call(app, url, receive, headers).run())


async def disconnect():
    return {"type": "http.disconnect"}


def until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
