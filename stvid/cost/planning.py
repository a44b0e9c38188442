"""Free memory, and the largest batch that fits into it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer

from stvid.clip import ClipSpec
from stvid.cost.estimate import estimate
from stvid.cost.report import CostReport, bytes_text
from stvid.errors import InputError
from stvid.preprocess import Preprocess

MEMORY_FRACTION = 0.8  # of the free memory; the rest is for what the simulation does not include
MAX_BATCH_SIZE = 256  # clips; a larger batch needs another learning rate
DEFAULT_BATCH_SIZE = 16  # clips, for `auto` where the free memory is unknown


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A model and the settings of its training that determine its cost.

    Attributes:
        model: may be on the meta device.
        num_classes: of its output.
        clip: `num_frames` is a number.
        make_optimizer: model -> optimizer.
        precision: in Lightning's notation.
        device: of the training; an estimate depends on its type only.
        batch_size: clips in a batch, or `auto`.
        ema: training keeps a moving average of the model.
    """

    model: nn.Module
    num_classes: int
    clip: ClipSpec
    make_optimizer: Callable[[nn.Module], Optimizer]
    precision: str
    device: torch.device
    batch_size: int | str
    ema: bool = False

    def estimate(self, batch_size: int) -> CostReport:
        """The cost of training on batches of `batch_size` clips."""
        assert self.clip.num_frames is not None
        return estimate(
            self.model,
            (self.clip.channels, self.clip.num_frames, *self.clip.size),
            batch_size=batch_size,
            precision=self.precision,
            device="cuda" if self.device.type == "cuda" else "cpu",
            optimizer=self.make_optimizer,
            preprocess=Preprocess(clip=self.clip),
            ema=self.ema,
        )

    def largest_batch(self, *, limit: int = MAX_BATCH_SIZE) -> int | None:
        """Clips in the largest batch, at most `limit`, that fits into 80 % of the free memory.

        0: not even 2 clips fit. None: the free memory is unknown.
        """
        free = free_bytes(self.device)
        if free is None:
            return None
        return largest_batch(
            lambda size: self.estimate(size).peak_train_bytes, budget=MEMORY_FRACTION * free, limit=limit
        )

    def resolve_batch_size(self, *, limit: int = MAX_BATCH_SIZE) -> int:
        """`batch_size`; for `auto` the largest that fits, at most `limit`, or 16 if the free memory is unknown.

        Raises:
            InputError: `auto`, and not even 2 clips fit.
        """
        if not isinstance(self.batch_size, str):
            return self.batch_size
        size = self.largest_batch(limit=min(limit, MAX_BATCH_SIZE))
        if size == 0:
            needed, free = self.estimate(2).peak_train_bytes, free_bytes(self.device)
            raise InputError(
                f"data.batch_size=auto: a training step on 2 clips needs {bytes_text(needed)}, "
                f"{bytes_text(free or 0)} are free. Choose a smaller clip.size or clip.num_frames, or another model"
            )
        return DEFAULT_BATCH_SIZE if size is None else size


def largest_batch(peak: Callable[[int], int], *, budget: float, limit: int = MAX_BATCH_SIZE) -> int:
    """The largest batch whose training step stays within a budget; 0 if not even 2 clips do.

    The peak grows linearly with the batch, except for kinks where another moment of the step becomes the peak. So the
    search follows lines through the sizes estimated so far, three times; then it bisects.

    Args:
        peak: batch size -> bytes that a training step needs; grows with the batch.
        budget: bytes.
        limit: largest batch to consider, at least 2. The smallest is 2, because batch norm may need two clips.
    """
    fits, too_large = 2, limit + 1  # invariant: the result is in fits .. too_large - 1
    fits_peak = peak(fits)
    if fits_peak > budget:
        return 0
    slope = max((peak(2 * fits) - fits_peak) / fits, 1)
    for attempt in itertools.count():
        if too_large - fits <= 1:
            return fits
        step = math.floor((budget - fits_peak) / slope) if attempt < 3 else (too_large - fits) // 2
        size = fits + min(max(step, 1), too_large - fits - 1)
        size_peak = peak(size)
        slope = max((size_peak - fits_peak) / (size - fits), 1)
        if size_peak <= budget:
            fits, fits_peak = size, size_peak
        else:
            too_large = size
    raise AssertionError("unreachable")


def free_bytes(device: torch.device) -> int | None:
    """Memory of a device that this process can still allocate; None if unknown.

    CUDA: what the driver reports. CPU: what Linux reports as available, or what is left of a container's limit (cgroup
    version 2 or 1) if that is less. Other devices: unknown.
    """
    if device.type == "cuda" and torch.cuda.is_available():
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    known = [number for number in (_available_bytes(), _cgroup_free_bytes()) if number is not None]
    return min(known) if known else None


def _available_bytes() -> int | None:
    """`MemAvailable` of Linux."""
    file = Path("/proc/meminfo")
    if not file.is_file():
        return None
    values = dict(line.split(":", 1) for line in file.read_text().splitlines() if ":" in line)
    return int(values["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in values else None


def _cgroup_free_bytes(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int | None:
    """The smallest remainder of a memory limit on this process's control group or one of its parents.

    Args:
        root: where the control groups are mounted.
        membership: file with the groups of this process: lines `number:controllers:path`, in version 2 without
            controllers.
    """
    remainders = []
    for line in membership.read_text().splitlines() if membership.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        mount = root / controllers
        group = mount / path.strip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(mount):
                remainders.append(_limit_remainder(folder))
    return min((number for number in remainders if number is not None), default=None)


def _limit_remainder(folder: Path) -> int | None:
    """Limit minus use of one control group; file pages that the kernel can free count as free."""
    for limit_name, usage_name, cache_name in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit, usage = _read_number(folder / limit_name), _read_number(folder / usage_name)
        if limit is None or usage is None:
            continue
        file = folder / "memory.stat"
        statistics = dict(line.split() for line in file.read_text().splitlines()) if file.is_file() else {}
        return max(limit - usage + int(statistics.get(cache_name, 0)), 0)
    return None


def _read_number(file: Path) -> int | None:
    """The number in a file; None if there is no file, or it says `max` (no limit)."""
    if not file.is_file():
        return None
    text = file.read_text().strip()
    return int(text) if text.isdigit() else None
