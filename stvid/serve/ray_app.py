"""The service on Ray Serve: several replicas of the application, on one machine or on many."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI

from stvid.device import set_up_cpu
from stvid.errors import InputError
from stvid.exits import stop_on_signals
from stvid.recognizer import load
from stvid.serve.app import create_app
from stvid.serve.options import ServeOptions, has_proxy

NAME = "stvid"  # of the application on Ray Serve
CORES = 1  # of each replica


@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """How many replicas there are.

    Attributes:
        replicas: processes that hold a model each, at least 1.
        max_replicas: Ray starts up to so many while there are more than `target_ongoing_requests` for each, and stops
            them again. None: there are always `replicas`.
        target_ongoing_requests: requests that a replica can work on together.
        num_gpus: GPUs of each replica, which also takes one core: one thread computes, and one decodes.
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

    They join the Ray cluster that runs on this machine, or that of `RAY_ADDRESS`. If there is none, a local cluster
    starts and ends with them.

    Args:
        run: a run folder or a checkpoint, with the same path on all machines.
        device: where each replica computes.
        trust: see `stvid.load`.
        options: of the service.
        ray_options: how many replicas, and where Ray's proxy listens.
        on_start: called with the address once all replicas answer.

    Raises:
        InputError: the cluster runs such an application already, or Ray Serve on it listens somewhere else.
    """
    options = dataclasses.replace(options, num_decoders=CORES)

    def make_app() -> FastAPI:  # called in each replica
        set_up_cpu(device)
        app = create_app(load(run, device=device, trust=trust), options)
        app.state.service.warm_up()
        return app

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports its use to its makers otherwise
    import ray
    from ray import serve

    ray.init(ignore_reinit_error=True, include_dashboard=False)
    try:
        with stop_on_signals() as stopped:  # after `init`, which has a handler of its own
            serve.start(http_options={"host": ray_options.host, "port": ray_options.port})
            check_name(serve.status().applications)
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


def check_name(applications: Collection[str]) -> None:
    """Raises InputError if the cluster runs an application of this name: a second one would replace it silently."""
    if NAME in applications:
        raise InputError(
            f"Ray Serve on this cluster runs an application {NAME!r} already, perhaps of another stvid serve --ray, "
            "and this one would replace it. Stop that by Ctrl-C; if its command was killed, remove what it left: "
            f"python -c \"from ray import serve; serve.delete('{NAME}')\""
        )


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
        "ray_actor_options": {"num_cpus": CORES, "num_gpus": ray_options.num_gpus},
    }
