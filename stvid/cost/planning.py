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
from stvid.cost import CostReport, estimate
from stvid.cost.table import bytes_text
from stvid.errors import InputError
from stvid.preprocess import Preprocess

SHARE = 0.8  # of the free memory that a plan may use; the rest is for what no simulation knows
MOST = 256  # clips; larger batches need another learning rate rather than more memory
UNKNOWN_BATCH = 16  # clips, where `auto` cannot know the free memory


def free_bytes(device: torch.device) -> int | None:
    """Memory that a device has left for this process; None where that cannot be known.

    CUDA: what the driver says. CPU: what Linux says is available, or what is left of a container's limit (cgroup
    version 2 or 1) where that is less. Other devices: not known.
    """
    if device.type == "cuda" and torch.cuda.is_available():
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    known = [number for number in (_available(), _left_in_group()) if number is not None]
    return min(known) if known else None


def largest_batch(peak: Callable[[int], int], *, budget: float, most: int = MOST) -> int:
    """The most clips, at least 2 and at most `most`, whose training step stays within a budget; 0: not even 2 do.

    A peak is a constant and a share for each clip, but for kinks where another moment of the step becomes the highest.
    So lines through simulated sizes are tried first, then halves of what is left.

    Args:
        peak: bytes that a training step on so many clips needs; it grows with them.
        budget: bytes.
        most: where to stop even if there is memory, at least 2; batches begin at 2, because batch norm may need two.
    """
    fits, above = 2, most + 1  # the answer lies from the one up to below the other
    needed = peak(fits)
    if needed > budget:
        return 0
    slope = max((peak(2 * fits) - needed) / fits, 1)
    for attempt in itertools.count():
        if above - fits <= 1:
            return fits
        step = math.floor((budget - needed) / slope) if attempt < 3 else (above - fits) // 2
        size = fits + min(max(step, 1), above - fits - 1)
        found = peak(size)
        slope = max((found - needed) / (size - fits), 1)
        if found <= budget:
            fits, needed = size, found
        else:
            above = size
    raise AssertionError("unreachable")


def _available() -> int | None:
    file = Path("/proc/meminfo")
    if not file.is_file():
        return None
    facts = dict(line.split(":", 1) for line in file.read_text().splitlines() if ":" in line)
    return int(facts["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in facts else None


def _left_in_group(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int | None:
    """Of the limits on this process's control group and those around it, the least that is left.

    Args:
        root: where the control groups are mounted.
        own: which ones this process is in: lines `number:controllers:path`, without controllers in version 2.
    """
    found = []
    for line in own.read_text().splitlines() if own.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        mount = root / controllers
        inside = mount / path.strip("/")
        for folder in (inside, *inside.parents):
            if folder.is_relative_to(mount):
                found.append(_left(folder))
    return min((number for number in found if number is not None), default=None)


def _left(folder: Path) -> int | None:
    """Limit less use of one control group; pages of files that the kernel would give back count as left."""
    for limit, used, kept in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit, used = _number(folder / limit), _number(folder / used)
        if limit is None or used is None:
            continue
        file = folder / "memory.stat"
        facts = dict(line.split() for line in file.read_text().splitlines()) if file.is_file() else {}
        return max(limit - used + int(facts.get(kept, 0)), 0)
    return None


def _number(file: Path) -> int | None:
    """Of a file with one number; None where there is none (`max`: no limit)."""
    if not file.is_file():
        return None
    text = file.read_text().strip()
    return int(text) if text.isdigit() else None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A model and how it would be trained.

    Attributes:
        model: may be on the meta device.
        num_classes: of its result.
        clip: `num_frames` is a number.
        make_optimizer: builds the optimizer of a model.
        precision: as Lightning calls it.
        device: where; its type is all that a price depends on.
        batch_size: clips in a batch, or `auto`.
        ema: an average of the weights is kept.
    """

    model: nn.Module
    num_classes: int
    clip: ClipSpec
    make_optimizer: Callable[[nn.Module], Optimizer]
    precision: str
    device: torch.device
    batch_size: int | str
    ema: bool = False

    def price(self, batch_size: int) -> CostReport:
        """Of a training step on so many clips."""
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

    def largest_batch(self, *, most: int = MOST) -> int | None:
        """Clips in the largest batch that fits into 80 % of the memory that is free; None where that is not known."""
        free = free_bytes(self.device)
        if free is None:
            return None
        return largest_batch(lambda size: self.price(size).peak_train_bytes, budget=SHARE * free, most=most)

    def chosen_batch(self, *, most: int = MOST) -> int:
        """`batch_size`; for `auto` the largest that fits, at most `most`, or 16 where the free memory is not known.

        Raises:
            InputError: `auto`, and not even 2 clips fit.
        """
        if self.batch_size != "auto":
            return self.batch_size
        size = self.largest_batch(most=min(most, MOST))
        if size == 0:
            needed, free = self.price(2).peak_train_bytes, free_bytes(self.device)
            raise InputError(
                f"data.batch_size=auto: a training step on 2 clips needs {bytes_text(needed)}, {bytes_text(free)} are "
                "free. Choose a smaller clip.size or clip.num_frames, or another model"
            )
        return UNKNOWN_BATCH if size is None else size
