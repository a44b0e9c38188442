"""`stvid serve` in a process of its own, and clients of it: what the benchmarks of serving share."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from websockets.sync.client import connect

from stvid.video.writer import write_video

TOKEN = "token-of-the-benchmark"
BOUNDARY = "benchmark"
Client = Callable[[], None]  # sends one request and reads its answer; raises an error if that is not as it should be


class Service:
    """`stvid serve` in a process of its own.

    Args:
        run: a run folder or a checkpoint.
        options: further options.
        folder: for temporary files; None: that of the system.

    Attributes:
        num_refused: uploads that were refused because of too much work (429), and sent again.
    """

    def __init__(self, run: str, *options: str, folder: str | None = None):
        command = [sys.executable, "-c", "from stvid.cli import main; main()", "serve", run, "--token", TOKEN, *options]
        environment = os.environ if folder is None else {**os.environ, "TMPDIR": folder}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self.process = subprocess.Popen(command, env=environment, text=True, **pipes)  # type: ignore[call-overload]
        assert self.process.stdout is not None
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if (found := re.search(r"serving .* on (http://[\w.]+:\d+);", line)) is not None:
                break
        else:
            sys.exit("".join(lines))
        self.url, self.num_refused = found[1], 0
        threading.Thread(target=self.process.stdout.read, daemon=True).start()

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.terminate()  # a process of a shell in the background may ignore Ctrl-C
        if self.process.wait(60):
            sys.exit(f"the service ended with code {self.process.returncode}")

    def get(self, path: str) -> dict:
        with urllib.request.urlopen(self.request(path)) as answer:
            return json.load(answer)

    def num_batches(self) -> np.ndarray:
        """Calls of the model so far, and the clips or frames in them."""
        with urllib.request.urlopen(self.request("/metrics")) as answer:
            text = answer.read().decode()
        found = [re.search(rf"^stvid_batch_size_{name} (.*)$", text, re.M) for name in ("count", "sum")]
        return np.array([float(match[1]) for match in found if match is not None])

    def cpu_ms(self) -> float:
        """CPU time of the process so far (Linux)."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return 1e3 * (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def request(self, path: str, body: bytes | None = None, *, token: str = TOKEN) -> urllib.request.Request:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
        return urllib.request.Request(self.url + path, body, headers, method="GET" if body is None else "POST")

    def resident_mib(self) -> float:
        """Memory of the process (Linux)."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def form(content: bytes, name: str = "video.mp4") -> bytes:
    """The body of an upload."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    return head.encode() + content + f"\r\n--{BOUNDARY}--\r\n".encode()


def small_file(size: tuple[int, int], num_frames: int) -> bytes:
    """An H.264 file of a smooth picture that moves to the right."""
    height, width = (max(side // 2 * 2, 16) for side in size)
    picture_HW1 = (np.add.outer(np.arange(height), np.arange(width)) % 256).astype(np.uint8)[..., None]
    frames = [np.roll(picture_HW1, t, axis=1).repeat(3, axis=2) for t in range(num_frames)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.mp4"
        write_video(path, np.stack(frames), fps=25)
        return path.read_bytes()


def uploads(service: Service, path: str, files: list[bytes], number: int) -> Iterator[Client]:
    """A client that sends the files in turn."""
    bodies = itertools.cycle([form(content) for content in files[number % len(files) :] + files[: number % len(files)]])

    def send() -> None:
        while True:
            try:
                with urllib.request.urlopen(service.request(path, next(bodies)), timeout=60) as answer:
                    assert abs(sum(json.load(answer)["probabilities"].values()) - 1) < 1e-3
                return
            except urllib.error.HTTPError as error:
                if error.code != 429:  # too much at once: the client comes again
                    raise
                service.num_refused += 1
                time.sleep(0.05)

    yield send


def camera(service: Service, size: tuple[int, int], number: int) -> Iterator[Client]:
    """A client that sends frames over a socket, which is open as long as the client."""
    frames = np.random.default_rng(number).integers(0, 256, (32, *size, 3), dtype=np.uint8)
    contents = itertools.cycle([frame.tobytes() for frame in frames])
    url = f"{service.url.replace('http', 'ws')}/stream?token={TOKEN}"
    with connect(url, compression=None) as socket:
        settings = {"fps": 25, "format": "rgb24", "size": [size[1], size[0]], "realtime": False}
        socket.send(json.dumps(settings))
        assert json.loads(socket.recv())["event"] == "start"

        def send() -> None:
            socket.send(next(contents))
            answer = json.loads(socket.recv(timeout=60))
            assert answer["event"] == "answer", answer

        yield send


def run_clients(makers: list[Callable[[], Iterator[Client]]], seconds: float) -> tuple[list[float], Counter[str]]:
    """Latencies in ms of the requests of all clients, which run at the same time, and the errors.

    If a client fails before all have begun, none begins.
    """
    latencies: list[float] = []
    errors: Counter[str] = Counter()
    deadline = [0.0]

    def start_clock() -> None:
        deadline[0] = time.perf_counter() + seconds

    begin = threading.Barrier(len(makers), action=start_clock)

    def measure(send: Client) -> None:
        while (start := time.perf_counter()) < deadline[0]:
            try:
                send()
                latencies.append(1e3 * (time.perf_counter() - start))
            except Exception as error:
                errors[describe(error)] += 1

    def run(maker: Callable[[], Iterator[Client]]) -> None:
        try:
            with contextlib.closing(maker()) as client:  # type: ignore[type-var] # a generator
                send = next(client)
                send()  # the first answer takes longer
                begin.wait()
                measure(send)
        except threading.BrokenBarrierError:
            pass
        except Exception as error:
            errors[describe(error)] += 1
            begin.abort()

    threads = [threading.Thread(target=run, args=(maker,)) for maker in makers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return latencies, errors


def describe(error: Exception) -> str:
    """An error as a key of a counter."""
    return f"{type(error).__name__}: {error}"[:120]
