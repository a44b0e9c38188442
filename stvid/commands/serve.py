"""`stvid serve`: a model that answers other programs over HTTP."""

from __future__ import annotations

import argparse
import os
import sys
import threading
from pathlib import Path

import torch

from stvid.deploy.segmentation import resolve_threshold
from stvid.device import resolve_device, set_up_cpu
from stvid.inference import batch_size_of
from stvid.recognizer import Recognizer, load
from stvid.serve.app import create_app
from stvid.serve.options import ServeOptions, serve_options, token_of
from stvid.serve.ray_app import RayOptions, run_on_ray
from stvid.serve.server import run_server
from stvid.serve.threads import THREAD_NAME
from stvid.terminal import show

LAST_SECONDS = 1.0  # in which threads end that have nothing to do


def run(options: argparse.Namespace) -> None:
    settings = serve_options(options)
    if options.ray:
        run_replicas(options, settings)
        return
    recognizer = load_recognizer(options)
    app = create_app(recognizer, settings)
    run_server(app, options.listener, on_start=lambda address: show(start_text(options, settings, address), flush=True))
    show("stopped", flush=True)
    leave_threads_behind()


def run_replicas(options: argparse.Namespace, settings: ServeOptions) -> None:
    """The same application on Ray Serve."""
    device = resolve_device(options.device)
    # only to tell mistakes here and not in each replica: on the CPU, because replicas need the accelerator's memory
    recognizer = load(options.run, device="cpu", trust=options.trust)
    show_model(recognizer, device)
    ray_options = RayOptions(
        replicas=options.replicas,
        max_replicas=options.max_replicas,
        target_ongoing_requests=settings.max_batch or batch_size_of(recognizer.trained),
        num_gpus=int(device.type == "cuda"),
        host=options.host,
        port=options.port,
    )
    del recognizer
    run_on_ray(
        str(Path(options.run).expanduser().resolve()),
        device=device.type,  # Ray shows a replica only its own GPU
        trust=options.trust,
        options=settings,
        ray_options=ray_options,
        on_start=lambda address: show(start_text(options, settings, address), flush=True),
    )
    show("stopped", flush=True)


def load_recognizer(options: argparse.Namespace) -> Recognizer:
    """The model of the command; says which threshold it has."""
    device = resolve_device(options.device)
    set_up_cpu(device.type)
    recognizer = load(options.run, device=device, trust=options.trust)
    show_model(recognizer, device)
    return recognizer


def show_model(recognizer: Recognizer, device: torch.device) -> None:
    """Says what runs where."""
    threshold, origin = resolve_threshold(recognizer.trained, None)
    show(f"{type(recognizer.trained.model).__name__} on {device}; threshold {threshold:g} ({origin})", flush=True)


def start_text(options: argparse.Namespace, settings: ServeOptions, address: str) -> str:
    """What the command says once requests are answered."""
    lines = [f"serving {options.run} on {address}; {address}/docs describes it; Ctrl-C stops"]
    if settings.token is not None and token_of(options) is None:
        lines.append(f"clients need this token: {settings.token}")
    return "\n".join(lines)


def leave_threads_behind() -> None:
    """Ends the program if a thread still decodes a video that nobody waits for: Python would wait for it."""
    threads = [thread for thread in threading.enumerate() if thread.name.startswith(THREAD_NAME)]
    for thread in threads:
        thread.join(timeout=LAST_SECONDS)
    if any(thread.is_alive() for thread in threads):
        sys.stdout.flush()
        os._exit(0)
