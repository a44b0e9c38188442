"""`--engine ray`: the parts of a command as tasks on a Ray cluster.

A part is the same command with `--shard I/N`. If its worker or machine dies, Ray starts it again, and it goes on with
what the first attempt has kept. All machines need the same file system and the same stvid.
"""

from __future__ import annotations

import contextlib
import io
import os
import traceback
from collections.abc import Callable, Mapping, Sequence

from stvid.errors import InputError
from stvid.terminal import show, visible

MAX_RETRIES = 5  # of a part whose worker or machine died
ON_GPU = ("predict", "encode")  # commands whose parts take a GPU each, if the cluster has any


def run_parts(
    main: Callable[[Sequence[str]], None], arguments: Sequence[str], *, command: str, num_parts: int | None
) -> None:
    """Runs all parts and waits for them. Ray's address is that of RAY_ADDRESS, or of a cluster that runs on this
    machine; else a local cluster is started for the time of the call.

    Args:
        main: runs a command line in a worker; see `stvid.cli.main`.
        arguments: the command line of a part, without --shard.
        command: the first of them.
        num_parts: number of parts; None: that of the machines.

    Raises:
        InputError: a part ended with the user's mistake.
        RuntimeError: a part ended with another error.
    """
    import ray

    ray.init(ignore_reinit_error=True, include_dashboard=False, log_to_driver=False)
    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        count = num_parts or len(nodes)
        cpus, gpus = resources_of_part(nodes, count=count, on_gpu=command in ON_GPU)
        task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=MAX_RETRIES)(_run_part)
        show(f"{count} parts on Ray, {cpus} CPUs" + (" and a GPU each" if gpus else " each"))
        waiting = {}
        for number in range(1, count + 1):
            words = [*arguments, "--shard", f"{number}/{count}"]
            waiting[task.remote(main, words, os.getcwd())] = number
        while waiting:
            (done, *_), _ = ray.wait(list(waiting))
            number = waiting.pop(done)
            _check_result(*ray.get(done), part=f"part {number}/{count} of stvid {command}")
            show(f"part {number}/{count} is finished")
    finally:  # also after Ctrl-C: ends the tasks of this call, and a cluster that it has started
        ray.shutdown()


def resources_of_part(nodes: Sequence[Mapping[str, float]], *, count: int, on_gpu: bool) -> tuple[int, int]:
    """CPUs and GPUs of each part: an equal share of all CPUs, but no more than a node has. Ray would wait forever.

    Args:
        nodes: the resources of each node.
        count: number of parts.
        on_gpu: the command uses a GPU.
    """
    with_gpu = [node for node in nodes if on_gpu and node.get("GPU", 0) >= 1]
    total = int(sum(node.get("CPU", 0) for node in nodes))
    largest = int(max((node.get("CPU", 0) for node in with_gpu or nodes), default=0))
    return max(1, min(total // count, largest)), int(bool(with_gpu))


def _check_result(code: int, printed: str, *, part: str) -> None:
    if code == 2:
        raise InputError(f"{part}: {printed.strip().removeprefix('error: ')}")
    if code:
        lines = "\n".join(visible(line) for line in printed.splitlines())
        raise RuntimeError(f"{part} ended with exit code {code}:\n{lines}")


def _run_part(main: Callable[[Sequence[str]], None], arguments: Sequence[str], folder: str) -> tuple[int, str]:
    """In a worker: exit code, and what was printed as an error."""
    os.chdir(folder)
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        try:
            main(arguments)
        except SystemExit as stop:
            return stop.code if isinstance(stop.code, int) else int(stop.code is not None), errors.getvalue()
        except Exception:
            return 1, errors.getvalue() + traceback.format_exc()
    return 0, errors.getvalue()
