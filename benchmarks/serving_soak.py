"""Good and bad requests to the service for minutes: `python benchmarks/serving.py RUN --minutes 10`."""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import os
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from socket import create_connection

import numpy as np
from serving_clients import (
    BOUNDARY,
    TOKEN,
    Client,
    Service,
    camera,
    describe,
    form,
    run_clients,
    small_file,
    uploads,
)
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

MAX_GROWTH_MIB = 30  # of the memory, from the first quarter of the time to the end


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
        with contextlib.suppress(ConnectionError), create_connection((host, int(port)), timeout=60) as socket:
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


def soak(options: argparse.Namespace, real_files: list[bytes]) -> bool:
    """Good and bad requests at the same time; whether all was as it should be."""
    folder = tempfile.TemporaryDirectory()
    with folder, Service(options.run, "--port", "0", "--max-upload", "2", folder=folder.name) as service:
        clip = service.get("/model")["clip"]
        video = small_file(tuple(clip["size"]), 2 * (clip["num_frames"] or 16))
        files = [video, *(content for content in real_files if len(content) < 2 * 2**20)]
        num_cameras = min(3, options.clients // 2)
        good = [functools.partial(camera, service, tuple(clip["size"]), i) for i in range(num_cameras)]
        good += [
            functools.partial(uploads, service, "/predict", files, i) for i in range(options.clients - num_cameras)
        ]
        with Misbehaviour(bad_clients(service, video)) as bad, Memory(service, 60 * options.minutes / 20) as memory:
            latencies, errors = run_clients(good, 60 * options.minutes)
        time.sleep(1)  # uploads that stopped in the last moment
        leftover = list(Path(folder.name).rglob("*.*"))
        num_refused = service.num_refused
    if not latencies:
        sys.exit(f"no good request was answered: {dict(errors)}")
    growth = memory.growth()
    p50, p99 = np.percentile(latencies, (50, 99))
    print(f"{options.minutes:g} minutes, {len(good)} good clients ({num_cameras} cameras), 2 bad ones")
    failed = f"{sum(errors.values())} failed {dict(errors)}, {num_refused} refused (429) and sent again"
    print(f"{len(latencies):,} good requests, {failed}; p50 {p50:.1f}, p99 {p99:.1f} ms")
    print(f"{sum(bad.sent.values()):,} bad requests {dict(bad.sent)}")
    print(f"{sum(bad.wrong.values())} of them with a wrong answer {dict(bad.wrong)}")
    print(f"memory {', '.join(f'{size:.0f}' for size in memory.mib)} MiB: {growth:+.1f} after the first quarter")
    print(f"{len(leftover)} files left in the folder of uploads")
    return not errors and not bad.wrong and not leftover and growth <= MAX_GROWTH_MIB


class Misbehaviour:
    """Two threads that send bad requests in turn.

    Attributes:
        sent: how many of each kind.
        wrong: answers that are not the ones they should be.
    """

    def __init__(self, clients: dict[str, Client]):
        self.clients, self.is_over = clients, threading.Event()
        self.sent: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()
        self.threads = [threading.Thread(target=self._run, args=(first,)) for first in (0, 3)]

    def __enter__(self) -> Misbehaviour:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.is_over.set()
        for thread in self.threads:
            thread.join()

    def _run(self, first: int) -> None:
        for name in itertools.islice(itertools.cycle(self.clients), first, None):
            if self.is_over.wait(0.02):
                return
            try:
                self.clients[name]()
            except Exception as error:
                self.wrong[f"{name}: {describe(error)}"] += 1
            self.sent[name] += 1


class Memory:
    """Measures the memory of the service in a thread.

    Attributes:
        mib: what was measured.
    """

    def __init__(self, service: Service, interval: float):
        self.service, self.interval, self.is_over = service, interval, threading.Event()
        self.mib = [service.resident_mib()]
        self.thread = threading.Thread(target=self._run)

    def __enter__(self) -> Memory:
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.is_over.set()
        self.thread.join()

    def _run(self) -> None:
        while not self.is_over.wait(self.interval):
            self.mib.append(self.service.resident_mib())

    def growth(self) -> float:
        """From the first quarter of the time to the end."""
        return self.mib[-1] - self.mib[len(self.mib) // 4]
