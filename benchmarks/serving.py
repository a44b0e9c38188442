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

Exits with 1 if batching brings less than 1.5 times the throughput for cameras of the cnn_lstm, or less than 0.9 times
in any row. The other rows say where it cannot bring much: files are decoded one by one, and 3D networks share only
steps that come with the same frame. With `--minutes`: if a good request failed, a bad one got another answer than it
should, or memory grew. With `--ray`: if a request was lost or got another answer, or the killed replica was not
replaced.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import importlib.metadata
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from serving_clients import Service, camera, run_clients, small_file, uploads
from serving_replicas import kill_a_replica
from serving_soak import soak
from startup import save_untrained

from stvid.models.cnn_lstm import CNNLSTM
from stvid.models.conv3d import Conv3D
from stvid.run.provenance import hardware

PACKAGES = ("torch", "fastapi", "uvicorn", "websockets", "av", "ray")
MIN_RATIO = 1.5  # of the throughput for cameras of the cnn_lstm, batched / single
MIN_OTHER_RATIO = 0.9  # in each row
ENCODER = "mobilenet_v3_small"


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
        if errors or service.num_refused:
            sys.exit(f"errors: {dict(errors)}; {service.num_refused} requests refused (429)")
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
        return min(compare_batching(options.run, options, real_files).values()) >= MIN_OTHER_RATIO
    with tempfile.TemporaryDirectory() as folder:
        cnn_lstm, conv3d = [compare_batching(run, options, real_files) for run in make_runs(Path(folder))]
    is_never_slower = min(*cnn_lstm.values(), *conv3d.values()) >= MIN_OTHER_RATIO
    return cnn_lstm["cameras"] >= MIN_RATIO and is_never_slower


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
    if options.clients < (1 if options.minutes is None else 2):
        parser.error("--clients must be at least 1, and with --minutes 2: a camera and one that sends files")
    if options.minutes is not None:
        is_good = soak(options, contents)
    else:
        is_good = kill_a_replica(options) if options.ray else print_table(options, contents)
    sys.exit(0 if is_good else 1)


if __name__ == "__main__":
    main()
