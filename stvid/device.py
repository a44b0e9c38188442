"""Device, precision, CPU threads and cores, chosen for the machine that runs the program."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import sys

import torch
from torch import Tensor

from stvid.errors import InputError

PRECISIONS = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}  # short name -> Lightning's name
GIB = 2**30
MALLOC_OPTIONS = (  # number of the option in malloc.h, environment variable, bytes
    (-3, "MALLOC_MMAP_THRESHOLD_", 2**28),  # larger tensors are mapped
    (-1, "MALLOC_TRIM_THRESHOLD_", 2**30),  # more free memory at the end of the heap is given back
)
MAX_OLD_THRESHOLD = 2**25  # of glibc before 2.35


def num_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores_per_process(num_processes: int | None = None) -> int:
    """CPU cores for each of the processes that run at the same time on this machine, at least 1.

    Args:
        num_processes: processes on this machine, including this one. None: the number that torchrun, Slurm or
            `stvid.distributed` started on this machine; 1 without a launcher.
    """
    # Slurm may bind each task to its own cores or all tasks to the same cores
    slurm_cores = os.environ.get("SLURM_CPUS_ON_NODE", "")
    node_cores = int(slurm_cores) if slurm_cores.isdecimal() else num_cores()
    return max(min(num_cores(), node_cores // (num_processes or _local_world_size())), 1)


def _local_world_size() -> int:
    """Processes that the launcher started on this machine; 1 without a launcher."""
    if count := os.environ.get("LOCAL_WORLD_SIZE"):
        return int(count)
    # tasks per node; "8(x2),4" means eight tasks on each of two nodes and four on a third
    tasks = re.findall(r"(\d+)(?:\(x\d+\))?", os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    return max(map(int, tasks), default=1)


def resolve_precision(precision: str | int, accelerator: str) -> str:
    """Lightning's name of a precision: `32-true`, `16-mixed` or `bf16-mixed`.

    Args:
        precision: one of these, a short name (32, 16, bf16), or `auto`. `auto` is `bf16-mixed` on CUDA devices with
            compute capability 8 or higher and on CPUs with AVX512-BF16 or AMX, where it trains video models several
            times faster than float32; elsewhere it is `32-true`.
        accelerator: Lightning's name: `auto`, `cpu`, `gpu`, `cuda` or `mps`.

    Raises:
        InputError: an unknown precision.
    """
    if precision != "auto":
        name = PRECISIONS.get(str(precision), str(precision))
        if name not in PRECISIONS.values():
            raise InputError(f"trainer.precision (={precision}) must be auto, {', '.join(PRECISIONS.values())}")
        return name
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.get_device_capability()[0] >= 8 else "32-true"
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return "32-true"
    return "bf16-mixed" if cpu_has_fast_bf16() else "32-true"


def inference_precision(precision: str | int, device: str) -> str:
    """The precision for inference: that of the training, or `32-true` if the device is slow in it.

    Args:
        precision: from the run's config.
        device: type of the device, such as `cuda`.

    Raises:
        InputError: an unknown precision.
    """
    name = resolve_precision(precision, device)
    is_fast = {"bf16-mixed": resolve_precision("auto", device) == "bf16-mixed", "16-mixed": device == "cuda"}
    return name if is_fast.get(name, True) else "32-true"


def default_device() -> torch.device:
    """The accelerator of this machine if there is one, else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def resolve_device(name: str | None) -> torch.device:
    """The device of a name such as `cuda:1`; None: see `default_device`.

    Raises:
        InputError: this machine has no such device.
    """
    if name is None:
        return default_device()
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # the last: a device without kernels
        raise InputError(
            f"--device {name}: PyTorch finds no such device on this machine; leave it out for {default_device()}"
        ) from error


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The autocast context for a precision returned by `resolve_precision`; disabled for `32-true`."""
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def set_up_cpu(device: str) -> None:
    """On the CPU: half of the cores for torch, the other half for the processes that read videos; memory that stays.

    With one torch thread per core, all threads of an operation wait for the thread whose core a reader uses: on two
    cores, training was up to seven times slower. `OMP_NUM_THREADS` takes precedence if it is set. The number of threads
    does not depend on `data.num_workers`, so neither do the results. Only programs call this, the library never does.
    """
    if device != "cpu":
        return
    keep_freed_memory()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(num_cores() // 2, 1))


def keep_freed_memory() -> None:
    """glibc keeps the memory of freed tensors for the next ones; other C libraries are left as they are.

    By default it maps each large tensor anew and gives it back when it is freed, so that Linux has to fault in every
    page again at each step, which took half of the CPU time of a network with large activations. The variables
    `MALLOC_MMAP_THRESHOLD_` and `MALLOC_TRIM_THRESHOLD_` take precedence if they are set.
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl
        return
    for option, variable, value in MALLOC_OPTIONS:
        if variable not in os.environ and not mallopt(option, value):
            mallopt(option, MAX_OLD_THRESHOLD)  # else it stays at 128 KiB: any option ends its growth


class HostCopy:
    """An asynchronous copy of a tensor to the CPU.

    A GPU runs asynchronously. `tensor.item()` waits until all queued work is done, and then the GPU idles until new
    work arrives. This copy is queued like any other work; `is_ready` says whether it is done.

    Args:
        values: any tensor; the caller may change or free it afterwards.
    """

    def __init__(self, values: Tensor):
        on_gpu = values.is_cuda
        self.host = torch.empty(values.shape, dtype=values.dtype, pin_memory=on_gpu)
        self.host.copy_(values.detach(), non_blocking=on_gpu)
        self.event = torch.cuda.current_stream(values.device).record_event() if on_gpu else None

    @property
    def is_ready(self) -> bool:
        """Whether `read` returns without waiting; always True if the tensor was not on a GPU."""
        return self.event is None or self.event.query()

    def read(self) -> float | int | bool | list:
        """The values as Python numbers; waits for the GPU if the copy is not ready."""
        if self.event is not None:
            self.event.synchronize()
        return self.host.tolist()


def cpu_has_fast_bf16() -> bool:
    """Whether the CPU multiplies bf16 in hardware (AVX512-BF16 or AMX; False on other architectures)."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def peak_host_gib() -> float | None:
    """Peak resident memory of this process in GiB; None if the system does not report it (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (GIB if sys.platform == "darwin" else 2**20), 3)  # bytes on macOS, KiB elsewhere
