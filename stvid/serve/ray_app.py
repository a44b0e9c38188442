"""The service on Ray Serve: several replicas of the application, on one machine or on many."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI

from stvid.device import limit_cpu_threads
from stvid.errors import InputError
from stvid.exits import stop_on_signals
from stvid.recognizer import load
from stvid.serve.app import create_app
from stvid.serve.options import ServeOptions, has_proxy

NAME = "stvid"  # of the application on Ray Serve


@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """How many replicas there are.

    Attributes:
        replicas: processes that hold the model, at least 1.
        max_replicas: Ray starts up to so many while there are more than `target_ongoing_requests` for each, and stops
            them again. None: there are always `replicas`.
        target_ongoing_requests: requests that a replica can work on together.
        num_gpus: GPUs of each replica. It also takes one core, and so many threads.
        host, port: where Ray's proxy listens.
    """

    replicas: int = 1
    max_replicas: int | None = None
    target_ongoing_requests: int = 16
    num_gpus: int = 0
    host: str = "127.0.0.1"
    port: int = 8000


def run_on_ray(
    run: str,
    *,
    device: str,
    trust: Sequence[str],
    options: ServeOptions,
    ray_options: RayOptions,
    on_start: Callable[[str], object] = lambda address: None,
) -> None:
    """Runs replicas of the application until Ctrl-C or SIGTERM.

    It joins the Ray cluster that runs on this machine, or that of `RAY_ADDRESS`. If there is none, it starts a local
    one, which ends with it.

    Args:
        run: a run folder or a checkpoint, with the same path on all machines.
        device: where each replica computes.
        trust: see `stvid.load`.
        options: of the service.
        ray_options: how many replicas, and where Ray's proxy listens.
        on_start: called with the address once all replicas answer.

    Raises:
        InputError: Ray Serve runs on the cluster already, and listens somewhere else.
    """

    def make_app() -> FastAPI:  # called in each replica
        limit_cpu_threads(device)
        app = create_app(load(run, device=device, trust=trust), options)
        app.state.service.warm_up()
        return app

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else Ray tells its makers
    import ray
    from ray import serve

    ray.init(ignore_reinit_error=True, include_dashboard=False)
    try:
        with stop_on_signals() as stopped:  # after `init`, which has a handler of its own
            serve.start(http_options={"host": ray_options.host, "port": ray_options.port})
            deployment = serve.deployment(name="model", **deployment_options(options, ray_options))
            try:
                serve.run(deployment(serve.ingress(make_app)()).bind(), name=NAME)
                _check_proxy(ray_options)
                on_start(f"http://{ray_options.host}:{ray_options.port}")
                stopped.wait()
            finally:
                serve.delete(NAME)
    finally:
        ray.shutdown()


def _check_proxy(ray_options: RayOptions) -> None:
    if not has_proxy(ray_options.host, ray_options.port):
        raise InputError(
            f"--host {ray_options.host} --port {ray_options.port}: Ray Serve runs on this cluster already, and listens "
            "somewhere else; name its host and port, or end it: serve shutdown"
        )


def deployment_options(options: ServeOptions, ray_options: RayOptions) -> dict[str, Any]:
    """Options of the Ray Serve deployment."""
    scaling: dict = {"num_replicas": ray_options.replicas}
    if ray_options.max_replicas is not None:
        scaling = {
            "num_replicas": None,
            "autoscaling_config": {
                "min_replicas": ray_options.replicas,
                "max_replicas": ray_options.max_replicas,
                "target_ongoing_requests": ray_options.target_ongoing_requests,
            },
        }
    return {
        **scaling,
        # a replica batches and refuses by itself; Ray's default of 5 would leave it nothing to batch
        "max_ongoing_requests": options.max_queue + options.max_streams,
        "max_queued_requests": options.max_queue,
        "graceful_shutdown_timeout_s": options.stop_seconds,
        "ray_actor_options": {"num_cpus": 1, "num_gpus": ray_options.num_gpus},
    }
