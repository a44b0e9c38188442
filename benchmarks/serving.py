"""The service under load: throughput with and without batching, good and bad requests mixed, replicas that are killed.

    python benchmarks/serving.py                         8 clients; batched against --max-batch 1: some minutes
    python benchmarks/serving.py RUN --videos DIR        the same with a run, and also with the videos of a folder
    python benchmarks/serving.py RUN --minutes 10        good and bad requests for 10 minutes: failures, memory
    python benchmarks/serving.py RUN --ray               two local replicas on Ray Serve, one of which is killed

The service is a process of its own on loopback; each client sends its next request when it has its answer. Throughput
is measured for three kinds of clients, in turns for both services (`--rounds`):

- cameras: frames over the socket `/stream`, as raw pixels of the model's size, each of them answered;
- small files: one clip of one file, H.264 of the model's size, so that there is little to decode;
- real files: the videos of `--videos`, sent to `/predict` as it is; mostly decoding, which batching cannot make faster.

Without RUN, the models are untrained, which takes the same time: a cnn_lstm whose encoder is a MobileNet, and conv3d.
For each row it prints requests per second, their latency, the CPU time of the service for one, and the ratio of the
services in throughput and in CPU time. The ratio in CPU time hardly depends on what else the machine does.

Exits with 1 if batching brings less than 1.5 times the throughput for cameras of the cnn_lstm. The other rows say where
it cannot: files are decoded one by one, and 3D networks share only steps that come with the same frame.
With `--minutes`: if a good request failed, a bad one got another answer than it should, or memory grew.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import importlib.metadata
import itertools
import json
import os
import platform
import re
import signal
import statistics
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
from startup import save_untrained
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from stvid.models.cnn_lstm import CNNLSTM
from stvid.models.conv3d import Conv3D
from stvid.run.provenance import hardware
from stvid.video.writer import write_video

TOKEN = "token-of-the-benchmark"
PACKAGES = ("torch", "fastapi", "uvicorn", "websockets", "av", "ray")
MAX_GROWTH_MIB = 30  # of the memory, from the first quarter of the time to the end
MIN_RATIO = 1.5  # of the throughput, batched / single
ENCODER = "mobilenet_v3_small"
BOUNDARY = "benchmark"
Client = Callable[[], None]  # sends one request and reads its answer; raises an error if that is not as it should be


class Service:
    """`stvid serve` in a process of its own.

    Args:
        run: a run folder or a checkpoint.
        options: further options.
        folder: for temporary files; None: that of the system.
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
        self.url = found[1]
        threading.Thread(target=self.process.stdout.read, daemon=True).start()

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.send_signal(signal.SIGINT)
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
    """Latencies in ms of the requests of all clients, which run at the same time, and the errors."""
    latencies: list[float] = []
    errors: Counter[str] = Counter()
    begin, deadline = threading.Barrier(len(makers)), [0.0]

    def run(maker: Callable[[], Iterator[Client]]) -> None:
        with contextlib.closing(maker()) as client:  # type: ignore[type-var] # a generator
            send = next(client)
            send()  # the first answer takes longer
            begin.wait()
            deadline[0] = deadline[0] or time.perf_counter() + seconds
            while (start := time.perf_counter()) < deadline[0]:
                try:
                    send()
                    latencies.append(1e3 * (time.perf_counter() - start))
                except Exception as error:
                    errors[f"{type(error).__name__}: {error}"[:120]] += 1

    threads = [threading.Thread(target=run, args=(maker,)) for maker in makers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return latencies, errors


def compare_batching(run: str, options: argparse.Namespace, real_files: list[bytes]) -> dict[str, float]:
    """Prints rows of a table about one model; returns the ratio in throughput for each kind of clients."""
    serving = ["--port", "0", "--max-delay", str(options.max_delay)]
    with Service(run, *serving) as batched, Service(run, *serving, "--max-batch", "1") as single:
        model = batched.get("/model")
        size, num_frames = tuple(model["clip"]["size"]), 2 * (model["clip"]["num_frames"] or 16)
        small = [small_file(size, num_frames)]
        kinds = {
            "cameras": lambda service, number: camera(service, size, number),
            "small files": lambda service, number: uploads(service, "/predict?clips=1&crops=1", small, number),
        }
        if real_files:
            kinds["real files"] = lambda service, number: uploads(service, "/predict", real_files, number)
        ratios = {}
        for name, kind in kinds.items():
            measured = {service: Measured() for service in (batched, single)}
            before = batched.num_batches()
            for _ in range(options.rounds):
                for service, result in measured.items():
                    result.measure(service, kind, options)
            num_batches, num_items = batched.num_batches() - before
            many, one = measured.values()
            ratios[name] = many.rate / one.rate
            print(
                f"| {model['model']}, {options.clients} {name} | {many.columns()} | {num_items / num_batches:.1f} "
                f"| {one.columns()} | {ratios[name]:.2f} | {one.cpu_ms / many.cpu_ms:.2f} |",
                flush=True,
            )
    return ratios


class Measured:
    """What was measured of one service, over all rounds."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.latencies: list[float] = []
        self.total_cpu_ms = 0.0

    def measure(self, service: Service, kind: Callable, options: argparse.Namespace) -> None:
        makers = [functools.partial(kind, service, number) for number in range(options.clients)]
        before = service.cpu_ms()
        latencies, errors = run_clients(makers, options.seconds)
        if errors:
            sys.exit(f"errors: {errors}")
        self.total_cpu_ms += service.cpu_ms() - before
        self.latencies += latencies
        self.rates.append(len(latencies) / options.seconds)

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)

    @property
    def cpu_ms(self) -> float:
        return self.total_cpu_ms / len(self.latencies)

    def columns(self) -> str:
        p50, p99 = np.percentile(self.latencies, (50, 99))
        return f"{self.rate:.0f} | {p50:.1f}, {p99:.1f} | {self.cpu_ms:.1f}"


def make_runs(folder: Path) -> list[str]:
    """Checkpoints of untrained models."""
    paths = [str(folder / "cnn_lstm.ckpt"), str(folder / "conv3d.ckpt")]
    save_untrained(CNNLSTM(num_classes=2, encoder=ENCODER), Path(paths[0]), encoder=ENCODER)
    save_untrained(Conv3D(num_classes=2), Path(paths[1]))
    return paths


def print_table(options: argparse.Namespace, real_files: list[bytes]) -> bool:
    """Whether batching is as much faster as it should be, where that is asked for."""
    service = "1/s | p50, p99 ms | CPU ms"
    print(f"| clients | batched: {service} | in a batch | --max-batch 1: {service} | ratio | CPU ratio |")
    print("|" + "---|" * 10)
    if options.run is not None:
        compare_batching(options.run, options, real_files)
        return True
    with tempfile.TemporaryDirectory() as folder:
        cnn_lstm, _ = [compare_batching(run, options, real_files) for run in make_runs(Path(folder))]
    return cnn_lstm["cameras"] >= MIN_RATIO


def bad_clients(service: Service, video: bytes) -> dict[str, Client]:
    """Name -> client that makes a mistake, and raises an error if the answer is not the one it should be."""

    def refused(status: int, body: bytes, *, token: str = TOKEN) -> Client:
        def send() -> None:
            try:
                urllib.request.urlopen(service.request("/predict", body, token=token), timeout=60).close()
            except urllib.error.HTTPError as error:
                if error.code not in (status, 429):
                    raise AssertionError(f"{error.code} instead of {status}") from error
                return
            except (ConnectionError, urllib.error.URLError):
                assert status == 413  # the service does not read what is too large
                return
            raise AssertionError(f"200 instead of {status}")

        return send

    def aborted() -> None:
        request = f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: "
        request += f"multipart/form-data; boundary={BOUNDARY}\r\nContent-Length: 500000\r\n\r\n"
        raw(request.encode() + form(video)[: len(video) // 2], reads=False)

    def raw(content: bytes, *, reads: bool = True) -> None:
        host, port = service.url.removeprefix("http://").split(":")
        with contextlib.suppress(ConnectionError), socket_to(host, int(port)) as socket:
            socket.sendall(content)
            if reads:
                socket.recv(1000)

    def wrong_frames() -> None:
        url = f"{service.url.replace('http', 'ws')}/stream?token={TOKEN}"
        with connect(url, compression=None) as socket:
            socket.send(json.dumps({"fps": 25, "format": "jpeg"}))
            socket.recv()
            socket.send(b"\xff\xd8" + os.urandom(1000))
            with contextlib.suppress(ConnectionClosed):
                message = json.loads(socket.recv(timeout=60))
                assert message["event"] == "error", message

    return {
        "no video": refused(415, form(b"no video at all" * 100)),
        "a truncated video": refused(415, form(video[: len(video) // 2])),
        "too large": refused(413, form(b"\0" * (3 * 2**20))),
        "a wrong token": refused(401, form(video), token="another-token"),
        "an upload that stops": aborted,
        "garbage instead of HTTP": lambda: raw(os.urandom(2000) + b"\r\n\r\n"),
        "garbage on the socket": wrong_frames,
    }


def socket_to(host: str, port: int):
    import socket

    return socket.create_connection((host, port), timeout=60)


def soak(options: argparse.Namespace, real_files: list[bytes]) -> bool:
    """Good and bad requests at the same time; whether all was as it should be."""
    folder = tempfile.TemporaryDirectory()
    with folder, Service(options.run, "--port", "0", "--max-upload", "2", folder=folder.name) as service:
        clip = service.get("/model")["clip"]
        size = tuple(clip["size"])
        video = small_file(size, 2 * (clip["num_frames"] or 16))
        files = [video, *(content for content in real_files if len(content) < 2 * 2**20)]
        good = [lambda i=i: camera(service, size, i) for i in range(3)]
        good += [lambda i=i: uploads(service, "/predict", files, i) for i in range(options.clients - 3)]
        bad, wrong, is_over = bad_clients(service, video), Counter(), threading.Event()
        sent: Counter[str] = Counter()

        def misbehave(offset: int) -> None:
            for name in itertools.islice(itertools.cycle(bad), offset, None):
                if is_over.is_set():
                    return
                try:
                    bad[name]()
                except Exception as error:
                    wrong[f"{name}: {type(error).__name__}: {error}"[:120]] += 1
                sent[name] += 1
                time.sleep(0.02)

        memory: list[float] = []

        def watch() -> None:
            while not is_over.wait(60 * options.minutes / 20):
                memory.append(service.resident_mib())

        others = [threading.Thread(target=misbehave, args=(i,)) for i in (0, 3)] + [threading.Thread(target=watch)]
        for thread in others:
            thread.start()
        latencies, errors = run_clients(good, 60 * options.minutes)
        is_over.set()
        for thread in others:
            thread.join()
        time.sleep(1)  # uploads that stopped in the last moment
        leftover = list(Path(folder.name).rglob("*.*"))
    growth = memory[-1] - memory[len(memory) // 4]
    p50, p99 = np.percentile(latencies, (50, 99))
    print(f"{options.minutes:g} minutes, {len(good)} good clients (3 cameras), 2 bad ones")
    failed = f"{sum(errors.values())} failed {dict(errors)}"
    print(f"{len(latencies):,} good requests, {failed}; p50 {p50:.1f}, p99 {p99:.1f} ms")
    print(f"{sum(sent.values()):,} bad requests {dict(sent)}, {sum(wrong.values())} with a wrong answer {dict(wrong)}")
    print(f"memory {', '.join(f'{size:.0f}' for size in memory)} MiB: {growth:+.1f} after the first quarter")
    print(f"{len(leftover)} files left in the folder of uploads")
    return not errors and not wrong and not leftover and growth <= MAX_GROWTH_MIB


def kill_a_replica(options: argparse.Namespace) -> bool:
    """Whether every request was answered although a replica was killed while they came."""
    import ray

    with Service(options.run, "--ray", "--replicas", "2", "--port", str(options.ray_port)) as service:
        clip = service.get("/model")["clip"]
        body = form(small_file(tuple(clip["size"]), 2 * (clip["num_frames"] or 16)))
        answered: Counter[str] = Counter()
        retries: Counter[str] = Counter()
        deadline = time.perf_counter() + options.seconds * 3

        def ask() -> None:
            while time.perf_counter() < deadline:
                while True:
                    try:
                        with urllib.request.urlopen(service.request("/predict", body), timeout=60) as answer:
                            answered[json.load(answer)["top"][0]["class"]] += 1
                        break
                    except OSError as error:
                        retries[str(error)] += 1

        threads = [threading.Thread(target=ask) for _ in range(options.clients)]
        for thread in threads:
            thread.start()
        ray.init(address="auto", log_to_driver=False)
        time.sleep(options.seconds)
        before = replicas_of(ray)
        ray.kill(ray.get_actor(before[0], namespace="serve"), no_restart=False)
        killed = time.perf_counter()
        while len([name for name in replicas_of(ray) if name != before[0]]) < 2:
            time.sleep(0.1)
        print(f"another replica was there {time.perf_counter() - killed:.1f} s after one of {len(before)} was killed")
        for thread in threads:
            thread.join()
        ray.shutdown()
    print(f"{sum(answered.values()):,} requests answered: {dict(answered)}")
    print(f"{sum(retries.values())} retries: {dict(retries)}")
    return len(answered) == 1


def replicas_of(ray) -> list[str]:
    """Names of the replicas that are alive."""
    names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
    return sorted(name for name in names if name.startswith("SERVE_REPLICA::stvid#"))


def print_machine() -> None:
    versions = [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES if installed(name)]
    facts = hardware()
    gpus = ", ".join(gpu["name"] for gpu in facts["gpus"]) or "no GPU"
    print(f"{datetime.date.today()}; {facts['machine']}, {facts['cpu']}, {facts['cores']} cores, {gpus}")
    print(f"Python {platform.python_version()}, {', '.join(versions)}\n", flush=True)


def installed(name: str) -> bool:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return bool(importlib.metadata.version(name))
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", nargs="?", help="default: untrained models")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement (default: 10)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each service (default: 3)")
    parser.add_argument("--max-delay", type=float, default=5, metavar="MS", help="as of stvid serve (default: 5)")
    parser.add_argument("--videos", metavar="DIR", help="a folder of real files")
    parser.add_argument("--minutes", type=float, help="instead: good and bad requests for so long")
    parser.add_argument("--ray", action="store_true", help="instead: two replicas, one of which is killed")
    parser.add_argument("--ray-port", type=int, default=8421)
    options = parser.parse_args()
    files = [] if options.videos is None else sorted(Path(options.videos).rglob("*.*"))
    contents = [path.read_bytes() for path in files if path.suffix.lower() in (".mp4", ".avi", ".webm", ".mkv")]
    print_machine()
    if options.run is None and (options.ray or options.minutes is not None):
        parser.error("--minutes and --ray need a RUN")
    if options.minutes is not None:
        is_good = soak(options, contents)
    else:
        is_good = kill_a_replica(options) if options.ray else print_table(options, contents)
    sys.exit(0 if is_good else 1)


if __name__ == "__main__":
    main()
