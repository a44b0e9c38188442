"""Two replicas on Ray Serve, one of which is killed under load: `python benchmarks/serving.py RUN --ray`."""

from __future__ import annotations

import argparse
import functools
import json
import threading
import time
import urllib.request
from collections import Counter

from serving_clients import Service, form, small_file

MAX_TRIES = 100  # of a request
RETRY_SECONDS = 0.1
RESTART_SECONDS = 120  # in which another replica must be there


def kill_a_replica(options: argparse.Namespace) -> bool:
    """Whether every request was answered, and alike, although a replica was killed while they came."""
    import ray

    with Service(options.run, "--ray", "--replicas", "2", "--port", str(options.ray_port)) as service:
        clip = service.get("/model")["clip"]
        body = form(small_file(tuple(clip["size"]), 2 * (clip["num_frames"] or 16)))
        result = Requests()
        deadline = time.perf_counter() + options.seconds * 3
        send = functools.partial(result.send_until, deadline, service, body)
        threads = [threading.Thread(target=send) for _ in range(options.clients)]
        for thread in threads:
            thread.start()
        ray.init(address="auto", log_to_driver=False)
        time.sleep(options.seconds)
        num_before = len(result.seconds)
        has_restarted = replace_one(ray)
        for thread in threads:
            thread.join()
        ray.shutdown()
    print(f"{num_before:,} requests answered before the kill, {len(result.seconds):,} in all, {result.num_lost} lost")
    print(f"{sum(result.retries.values())} retries: {dict(result.retries)}; slowest answer {max(result.seconds):.1f} s")
    print(f"different answers: {len(result.answers)}")
    is_complete = 0 < num_before < len(result.seconds) and not result.num_lost
    return is_complete and has_restarted and len(result.answers) == 1


class Requests:
    """What became of the requests of all clients.

    Attributes:
        answers: probabilities, rounded to 4 digits; how often.
        seconds: from the first try to the answer.
        retries: errors after which a request was sent again.
        num_lost: requests without an answer after `MAX_TRIES`.
    """

    def __init__(self) -> None:
        self.answers: Counter[tuple[float, ...]] = Counter()
        self.seconds: list[float] = []
        self.retries: Counter[str] = Counter()
        self.num_lost = 0

    def send_until(self, deadline: float, service: Service, body: bytes) -> None:
        while time.perf_counter() < deadline:
            began = time.perf_counter()
            if self._send(service, body):
                self.seconds.append(time.perf_counter() - began)
            else:
                self.num_lost += 1

    def _send(self, service: Service, body: bytes) -> bool:
        for _ in range(MAX_TRIES):
            try:
                with urllib.request.urlopen(service.request("/predict", body), timeout=60) as answer:
                    probabilities = json.load(answer)["probabilities"]
                self.answers[tuple(round(value, 4) for value in probabilities.values())] += 1
                return True
            except OSError as error:
                self.retries[str(error)] += 1
                time.sleep(RETRY_SECONDS)
        return False


def replace_one(ray) -> bool:
    """Kills a replica; whether another one came in its place in time."""
    before = replicas_of(ray)
    ray.kill(ray.get_actor(before[0], namespace="serve"), no_restart=False)
    killed = time.perf_counter()
    while (seconds := time.perf_counter() - killed) < RESTART_SECONDS:
        if len([name for name in replicas_of(ray) if name != before[0]]) >= len(before):
            print(f"another replica was there {seconds:.1f} s after one of {len(before)} was killed")
            return True
        time.sleep(0.1)
    print(f"no other replica came in {RESTART_SECONDS} s after one of {len(before)} was killed")
    return False


def replicas_of(ray) -> list[str]:
    """Names of the replicas that are alive."""
    names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
    return sorted(name for name in names if name.startswith("SERVE_REPLICA::stvid#"))
