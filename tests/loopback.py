"""A web server on this machine that sends endless video, and can be cut."""

import contextlib
import http.server
import io
import socket
import threading
from fractions import Fraction

import av
import numpy as np


def mpegts(*, num_frames=50, fps=25, size=(48, 64), first=0):
    """Bytes of an MPEG-TS video: frame i is a grey picture of level `5 i mod 250`, shown at `(first + i) / fps`."""
    out = io.BytesIO()
    with av.open(out, "w", format="mpegts") as container:
        stream = container.add_stream("mpeg2video", rate=fps)
        stream.height, stream.width = size
        stream.pix_fmt, stream.codec_context.gop_size, stream.codec_context.max_b_frames = "yuv420p", 10, 0
        for i in range(num_frames):
            picture = np.full((*size, 3), 5 * i % 250, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = first + i, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return out.getvalue()


class Server(http.server.ThreadingHTTPServer):
    """Answers paths with the functions in `answers`, which get the handler.

    Attributes:
        url: without the path.
        requests: paths that were asked for.
        stop: set it to end endless answers.
    """

    daemon_threads = True

    def __init__(self, answers):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers, self.requests, self.stop = answers, [], threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *words):
        pass

    def do_GET(self):
        self.server.requests.append(self.path)
        with contextlib.suppress(ConnectionError):  # the other side has enough
            self.server.answers[self.path](self)


@contextlib.contextmanager
def serving(**answers):
    """Yields a `Server` whose path `/NAME` is answered by `NAME(handler)`."""
    server = Server({f"/{name.replace('__', '.')}": answer for name, answer in answers.items()})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stop.set()
        server.shutdown()
        server.server_close()


def send(handler, content, *, kind="video/mp2t", with_length=True):
    """A whole answer; without its length, the other side takes the end for a lost connection."""
    handler.send_response(200)
    handler.send_header("Content-Type", kind)
    if with_length:
        handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


SDP = "".join(
    f"{line}\r\n"
    for line in ("v=0", "o=- 0 0 IN IP4 127.0.0.1", "s=-", "t=0 0", "m=video 0 RTP/AVP 96", "a=rtpmap:96 H264/90000")
)
RTSP_ANSWERS = {
    "OPTIONS": "Public: OPTIONS, DESCRIBE, SETUP, PLAY\r\n",
    "DESCRIBE": f"Content-Type: application/sdp\r\nContent-Length: {len(SDP)}\r\n",
    "SETUP": "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n",
}


def rtp_packets(num_frames):
    """RTP packets of H.264, as PyAV sends them by UDP: frame i is a grey picture of level `5 i`."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        with av.open(f"rtp://127.0.0.1:{receiver.getsockname()[1]}", "w", format="rtp") as container:
            stream = container.add_stream("libx264", rate=25, options={"tune": "zerolatency", "preset": "ultrafast"})
            stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
            for i in range(num_frames):
                picture = np.full((48, 64, 3), 5 * i, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
        receiver.setblocking(False)
        packets = []
        with contextlib.suppress(BlockingIOError):
            while True:
                packets.append(receiver.recv(65536))
    return [packet for packet in packets if not 200 <= packet[1] <= 206]  # those are RTCP


@contextlib.contextmanager
def rtsp_camera(packets):
    """Yields the URL of a camera that sends these packets, over TCP, to the first who asks, and hangs up."""

    def answer():
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as requests:
            for line in requests:
                verb = line.split()[0].decode()
                headers = dict(header.decode().strip().split(": ", 1) for header in iter(requests.readline, b"\r\n"))
                body = SDP if verb == "DESCRIBE" else ""
                text = f"RTSP/1.0 200 OK\r\nCSeq: {headers['CSeq']}\r\n{RTSP_ANSWERS.get(verb, '')}\r\n{body}"
                connection.sendall(text.encode())
                if verb == "PLAY":
                    connection.sendall(b"".join(b"$\0" + len(packet).to_bytes(2, "big") + packet for packet in packets))
                    connection.shutdown(socket.SHUT_WR)
                    requests.read()  # until the other side hangs up too

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=answer, daemon=True).start()
        yield f"rtsp://127.0.0.1:{listener.getsockname()[1]}/stream"


def endless(content):
    """An answer that repeats the content until the server stops."""

    def answer(handler):
        send(handler, content, with_length=False)
        while not handler.server.stop.is_set():
            handler.wfile.write(content)

    return answer
