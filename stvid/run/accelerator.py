"""Refuses to train on a GPU that this machine does not have."""

from __future__ import annotations

import glob
import shutil
import sys

from stvid.errors import InputError

# devices of NVIDIA (also on Jetson), AMD and WSL; the driver of NVIDIA, whose devices may appear on first use
GPU_FILES = (
    "/dev/nvidia*",
    "/dev/nvhost*",
    "/dev/nvgpu*",
    "/dev/nvmap",
    "/dev/kfd",
    "/dev/dxg",
    "/proc/driver/nvidia*",
)
NO_GPU_TO_AUGMENT = (
    "augment.device (=gpu): this run trains on a CPU. augment.device=auto takes a GPU if the run trains on one, "
    "augment.device=cpu none"
)


def check_gpu_is_possible(accelerator: str) -> None:
    """Raises InputError if a GPU is asked for and the system shows that there is none. Imports no torch."""
    if accelerator == "mps":
        is_possible = sys.platform == "darwin"
    elif accelerator in ("gpu", "cuda") and sys.platform == "linux":
        is_possible = any(map(glob.glob, GPU_FILES)) or shutil.which("nvidia-modprobe") is not None
    else:
        is_possible = True
    if not is_possible:
        raise _no_device(accelerator)


def check_accelerator(accelerator: str, *, augment_device: str = "auto") -> None:
    """Raises InputError if a GPU is asked for and PyTorch finds none, before the data set is read.

    Args:
        accelerator: `trainer.accelerator`.
        augment_device: `augment.device`.
    """
    import torch  # here: the check above does without

    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not found.get(accelerator, accelerator != "gpu" or any(found.values())):
        raise _no_device(accelerator)
    if augment_device == "gpu" and not any(found.values()):
        raise InputError(NO_GPU_TO_AUGMENT)


def _no_device(accelerator: str) -> InputError:
    return InputError(
        f"trainer.accelerator (={accelerator}): PyTorch finds no such device on this machine. trainer=auto takes a "
        "GPU if there is one, trainer=cpu none"
    )
