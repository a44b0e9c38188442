"""Live recognition of a stream over HTTP on this machine: dropped frames, latency and memory.

    python benchmarks/live.py RUN                   10,000 frames, twice as fast as the model, cut every 2,500
    python benchmarks/live.py RUN --factor 0.5      half as fast as the model: nothing is dropped

The model is slowed down to `--ms` for each frame, since this machine can hardly send frames twice as fast as small
models read them. Prints the dropped share, the latency, and the memory of the process after each tenth of the frames.
"""

import argparse
import contextlib
import http.server
import io
import logging
import threading
import time
from pathlib import Path

import av
import numpy as np

from stvid.deploy import live_stream
from stvid.deploy.live import LiveRecognition
from stvid.deploy.steady_label import SteadyLabel
from stvid.deploy.stream import Stream
from stvid.device import default_device, set_up_cpu
from stvid.run.checkpoint import load_checkpoint
from stvid.video.capture import NetworkStream

FPS, SIZE = 25, (240, 320)  # of the stream: its stated rate; height and width


def encoded_frames(count=100):
    """The bytes of each frame of an MPEG-TS video in which a square moves."""
    out, parts = io.BytesIO(), []
    with av.open(out, "w", format="mpegts") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "tune": "zerolatency"})
        (stream.height, stream.width), stream.pix_fmt = SIZE, "yuv420p"
        stream.codec_context.gop_size = FPS
        for i in range(count):
            picture = np.full((*SIZE, 3), 60, np.uint8)
            picture[80:160, 2 * i : 2 * i + 80] = 220
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            parts.append(out.tell())
    content = out.getvalue()
    return [content[a:b] for a, b in zip([0, *parts], [*parts, len(content)], strict=True)]


def serve(parts, *, rate, cut_after):
    """Serves the frames endlessly at `rate` frames/s; a connection is cut after `cut_after` frames. Returns the URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *words):
            pass

        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            began = time.monotonic()
            with contextlib.suppress(ConnectionError):  # the other side has enough
                for i in range(cut_after):
                    time.sleep(max(began + i / rate - time.monotonic(), 0))
                    self.wfile.write(parts[i % len(parts)])

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}/"


def slow_stream(seconds):
    """A `Stream` that takes at least so long for each frame."""

    class SlowStream(Stream):
        def push(self, frame):
            began = time.perf_counter()
            answer = super().push(frame)
            time.sleep(max(seconds - (time.perf_counter() - began), 0))
            return answer

    return SlowStream


def memory_mib():
    """Resident memory of this process (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--frames", type=int, default=10_000, help="of the source")
    parser.add_argument("--factor", type=float, default=2.0, help="rate of the source / rate of the model")
    parser.add_argument("--ms", type=float, default=10.0, help="of the model for each frame, at least")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    set_up_cpu(default_device().type)
    trained = load_checkpoint(options.run)
    live_stream.Stream = slow_stream(options.ms / 1000)
    rate = 1000 * options.factor / options.ms
    url = serve(encoded_frames(), rate=rate, cut_after=options.frames // 4)
    label = SteadyLabel(trained.class_names, threshold=0.5, min_duration=0.3)
    live = LiveRecognition(trained, NetworkStream(url, fps=rate), label=label)
    memory, taken = [], 0
    for event in live.events():
        if event.note:
            print(f"{event.seconds:8.1f} s  {event.note}", flush=True)
        taken += event.frame_CHW is not None
        count = taken + live.slot.dropped
        if count >= options.frames * (len(memory) + 1) / 10:
            memory.append(memory_mib())
        if count >= options.frames:
            break
    meter, dropped = live.meter, live.slot.dropped
    print(f"source {rate:.0f} frames/s; the model manages {1000 / options.ms:.0f} and was given {meter.mean_fps:.0f}")
    print(
        f"{count:,} frames, {dropped:,} dropped ({dropped / count:.0%}), {live.slot.connections} times connected again"
    )
    print(f"latency {meter.mean_ms:.2f} ms on average, 95 % at most {meter.percentile_95_ms:.2f} ms")
    print(f"memory {', '.join(f'{size:.0f}' for size in memory)} MiB")


if __name__ == "__main__":
    main()
