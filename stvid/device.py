"""Device, precision, CPU threads and cores: what is best for the machine at hand."""

from __future__ import annotations

import os
import platform
import re
import sys

import torch
from torch import Tensor

from stvid.errors import InputError

PRECISIONS = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}  # short names, as the Trainer knows them
GIB = 2**30


def num_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores_per_process(num_processes: int | None = None) -> int:
    """CPU cores for each of several processes that work at the same time on this machine, at least 1.

    Args:
        num_processes: processes on this machine, this one included. None: those that torchrun, Slurm or
            `stvid.distributed` started here; without any of these, this process is alone.
    """
    # Slurm may have bound each of its tasks to cores of its own, or all of them to the same ones.
    in_job = os.environ.get("SLURM_CPUS_ON_NODE", "")
    together = int(in_job) if in_job.isdecimal() else num_cores()
    return max(min(num_cores(), together // (num_processes or _num_started_here())), 1)


def _num_started_here() -> int:
    if count := os.environ.get("LOCAL_WORLD_SIZE"):
        return int(count)
    # of each node, such as "8(x2),4": eight tasks on two nodes and four on a third
    tasks = re.findall(r"(\d+)(?:\(x\d+\))?", os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    return max(map(int, tasks), default=1)


def resolve_precision(precision: str | int, accelerator: str) -> str:
    """`32-true`, `16-mixed` or `bf16-mixed` for one of these, a short name (32, 16, bf16), or `auto`.

    `auto` is `bf16-mixed` on CUDA devices of compute capability 8 and more and on CPUs with AVX512-BF16 or AMX, where
    it trains video models several times faster than float32; `32-true` elsewhere.

    Raises:
        InputError: anything else.
    """
    if precision != "auto":
        name = PRECISIONS.get(str(precision), precision)
        if name not in PRECISIONS.values():
            raise InputError(f"trainer.precision (={precision}) must be auto, {', '.join(PRECISIONS.values())}")
        return name
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.get_device_capability()[0] >= 8 else "32-true"
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return "32-true"
    return "bf16-mixed" if cpu_has_fast_bf16() else "32-true"


def inference_precision(precision: str | int, device: str) -> str:
    """The precision in which a model answers: its training's, or `32-true` where the device is slow in that.

    Args:
        precision: as the run's config keeps it.
        device: type of the device, such as `cuda`.

    Raises:
        InputError: an unknown precision.
    """
    name = resolve_precision(precision, device)
    is_fast = {"bf16-mixed": resolve_precision("auto", device) == "bf16-mixed", "16-mixed": device == "cuda"}
    return name if is_fast.get(name, True) else "32-true"


def default_device() -> torch.device:
    """The accelerator of this machine, if it has one, else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The autocast context for a precision returned by `resolve_precision`; disabled for `32-true`."""
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def limit_cpu_threads(device: str) -> None:
    """On the CPU, limits torch to half of the cores, so that the other half is free for the processes that read videos.

    With a thread on every core, all threads of an operation wait for the one that a reader displaces: on two cores that
    made training up to seven times slower. `OMP_NUM_THREADS` takes precedence if set. The number does not depend on
    `data.num_workers`, so results do not either. Only commands call this; the library leaves torch's threads alone.
    """
    if device == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(num_cores() // 2, 1))


class HostCopy:
    """A tensor's values on their way to the CPU.

    A GPU computes behind the process that feeds it. `tensor.item()` waits until it has caught up, and then the GPU
    waits for new work. A copy is made whenever the GPU gets there, and `is_ready` tells whether it did.

    Args:
        values: any tensor; it may be changed or freed afterwards.
    """

    def __init__(self, values: Tensor):
        on_gpu = values.is_cuda
        self.host = torch.empty(values.shape, dtype=values.dtype, pin_memory=on_gpu)
        self.host.copy_(values.detach(), non_blocking=on_gpu)
        self.event = torch.cuda.current_stream(values.device).record_event() if on_gpu else None

    @property
    def is_ready(self) -> bool:
        """Whether `read` would return at once; always True where the tensor was not on a GPU."""
        return self.event is None or self.event.query()

    def read(self) -> float | int | bool | list:
        """The values as plain numbers; waits for the GPU where they are not ready."""
        if self.event is not None:
            self.event.synchronize()
        return self.host.tolist()


def cpu_has_fast_bf16() -> bool:
    """Whether the CPU multiplies bf16 in hardware (AVX512-BF16 or AMX; False on other architectures)."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def peak_host_gib() -> float | None:
    """Peak resident memory of this process in GiB; None where the system does not report it (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (GIB if sys.platform == "darwin" else 2**20), 3)  # bytes there, else KiB
