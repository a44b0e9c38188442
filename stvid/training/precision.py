"""`precision: auto`: bf16 where the hardware is fast at it."""

from __future__ import annotations

import platform

import torch


def resolve_precision(precision: str | int, accelerator: str) -> str | int:
    """What to hand to the Trainer for `auto`; anything else is handed on as it is.

    `auto` is `bf16-mixed` on CUDA devices of compute capability 8 and more and on CPUs with AVX512-BF16 or AMX, where
    it trains video models several times faster than float32; `32-true` elsewhere.
    """
    if precision != "auto":
        return precision
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.get_device_capability()[0] >= 8 else "32-true"
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return "32-true"
    return "bf16-mixed" if cpu_has_fast_bf16() else "32-true"


def cpu_has_fast_bf16() -> bool:
    """Whether the CPU multiplies bf16 in hardware (x86 only; elsewhere the answer is no)."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
