"""Connections of strangers: none is held without a request, and no flood of small frames keeps others waiting."""

import contextlib
import socket
import struct
import threading
from types import SimpleNamespace

import pytest

from stvid.serve import connections
from stvid.serve.options import ServeOptions, bind_port
from stvid.serve.server import Server

UPGRADE = (
    "GET /stream HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
)
CONT, TEXT, PING = 0, 1, 9
ANSWER = b"\x81\x012"  # text: the length 2


class Echo:
    """An application that answers each request with `fine`, and each message of a socket with its length."""

    def __init__(self):
        self.state = SimpleNamespace(service=SimpleNamespace(options=ServeOptions(), is_stopping=False))

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            for _ in range(2):
                await send({"type": (await receive())["type"] + ".complete"})
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
            await send({"type": "http.response.body", "body": b"fine"})
        else:
            assert (await receive())["type"] == "websocket.connect"
            await send({"type": "websocket.accept"})
            while (message := await receive())["type"] == "websocket.receive":
                await send({"type": "websocket.send", "text": str(len(message["text"]))})


@pytest.fixture(scope="module")
def port():
    listener, started = bind_port("127.0.0.1", 0), threading.Event()
    listener.listen()
    server = Server(Echo(), on_start=started.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    assert started.wait(60)
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join(60)
    assert not thread.is_alive()


@contextlib.contextmanager
def connected(port):
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        yield connection


def rest_of(connection):
    """What the service still sends until it closes the connection."""
    pieces = []
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(65536):
            pieces.append(piece)
    return b"".join(pieces)


def frame(kind, content=b"", *, final=True):
    """A frame of a client, RFC 6455 5.2, with a mask of zeros."""
    assert len(content) < 126
    return struct.pack("!BB4x", 128 * final + kind, 128 + len(content)) + content


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nX: ", b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /"])
def test_a_connection_without_a_whole_header_is_cut(port, monkeypatch, sent):
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.05)
    with connected(port) as connection:
        connection.sendall(sent)
        assert rest_of(connection).count(b"fine") == sent.count(b"\r\n\r\n")


def test_a_connection_answers_several_requests(port):
    request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    with connected(port) as connection:
        connection.sendall(2 * request + request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert rest_of(connection).count(b"fine") == 3


@pytest.mark.parametrize(
    "header", ["X: 1\r\n" * 200, f"X: {'a' * 20_000}\r\n", "Content-Length: 1\r\n"], ids=["many", "long", "body"]
)
def test_a_socket_that_cannot_be_opened_is_answered(port, header):
    with connected(port) as connection:
        connection.sendall(f"{UPGRADE}{header}\r\n".encode())
        assert rest_of(connection).startswith(b"HTTP/1.1 400 ")


def read_until(connection, end):
    answer = b""
    while not answer.endswith(end):
        answer += connection.recv(1)
    return answer


def open_socket(connection):
    connection.sendall(f"{UPGRADE}\r\n".encode())
    assert read_until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")


@pytest.mark.parametrize("kind", [PING, CONT])
def test_a_flood_of_frames_without_a_message_is_cut(port, kind):
    small = frame(kind, final=kind == PING)
    with connected(port) as connection:
        open_socket(connection)
        begin = frame(TEXT, b"a", final=False)
        allowed = small * (connections.MAX_FRAMES - 1) + frame(CONT, b"b")
        for _ in range(2):  # messages in many pieces are fine
            connection.sendall(begin + allowed)
            read_until(connection, ANSWER)
        with contextlib.suppress(ConnectionError):
            connection.sendall(begin + small * (connections.MAX_FRAMES + 1) + frame(CONT, b"b"))
        assert ANSWER not in rest_of(connection)


def test_a_socket_answers_messages_in_pieces(port):
    with connected(port) as connection:
        open_socket(connection)
        connection.sendall(frame(TEXT, b"a", final=False) + frame(PING, b"?") + frame(CONT, b"b"))
        assert read_until(connection, ANSWER) == b"\x8a\x01?" + ANSWER
