"""The learning rate over a run: share of the greatest one at every step.

S steps of the run   W of them warm up   s the step, counted from 0
"""

from __future__ import annotations

import math
import sys
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LinearLR, ReduceLROnPlateau

from stvid.errors import InputError

SCHEDULES = ("cosine", "linear", "constant", "multi_step", "one_cycle", "plateau")
USED_BY = {"milestones": ("multi_step",), "gamma": ("multi_step", "plateau"), "patience": ("plateau",)}
MILESTONES, GAMMA, PATIENCE = (0.5, 0.75), 0.1, 5  # where none is given; the first two of He et al. 2016 on CIFAR-10
DIVIDED_BY, THEN_BY = 25.0, 1e4  # one_cycle begins with 1/25 and ends with 1/10,000 of that


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How the learning rate warms up, and what comes then.

    All but `plateau` are functions of s and S alone: a run that is resumed, or told to train longer, needs to know
    nothing of its past. A run warms up by `(s + 1) / W` for s < W, unless its schedule is `one_cycle`.

    Attributes:
        name: `cosine`: `(1 + cos(pi * (s - W) / (S - W))) / 2` (Loshchilov & Hutter 2017, arXiv:1608.03983, without
            restarts). `linear`: `1 - (s - W) / (S - W)`. `constant`: 1. `multi_step`: `gamma ** n` behind n milestones.
            `one_cycle`: from 1/25 up as a cosine within the warm-up, then down as a cosine to 1/250,000 (Smith & Topin
            2018, arXiv:1708.07120, as torch's OneCycleLR has it); the momentum is not cycled. `plateau`: times `gamma`
            as soon as `val_loss` has been no better (by 0.01 %) for more than `patience` validations on end.
        warmup: W as a share of the run, in [0, 1); never less than one step.
        milestones: shares of the run in (0, 1), ascending; None: half and three quarters.
        gamma: in (0, 1); None: 0.1.
        patience: validations, 0 or more; None: 5.

    Raises:
        InputError: a value out of its range, or one that the schedule has no use for.
    """

    name: str = "cosine"
    warmup: float = 0.1
    milestones: Sequence[float] | None = None
    gamma: float | None = None
    patience: int | None = None

    def __post_init__(self):
        if self.name not in SCHEDULES:
            raise InputError(f"optimizer.schedule (={self.name}) must be one of {', '.join(SCHEDULES)}")
        if not 0 <= self.warmup < 1:
            raise InputError(f"optimizer.warmup (={self.warmup}) must lie in [0, 1)")
        for key, users in USED_BY.items():
            if getattr(self, key) is not None and self.name not in users:
                raise InputError(
                    f"optimizer.{key} (={getattr(self, key)}) has no effect with optimizer.schedule={self.name}; it is "
                    f"for {' and '.join(users)}"
                )
        if self.gamma is not None and not 0 < self.gamma < 1:
            raise InputError(f"optimizer.gamma (={self.gamma}) must lie in (0, 1)")
        if self.patience is not None and self.patience < 0:
            raise InputError(f"optimizer.patience (={self.patience}) must be 0 or more validations")
        if self.milestones is not None:
            shares = [0, *self.milestones, 1]
            numbers = len(shares) > 2 and all(isinstance(share, int | float) for share in shares)
            if not numbers or any(one >= next_ for one, next_ in pairwise(shares)):
                raise InputError(
                    f"optimizer.milestones (={list(self.milestones)}) must be shares of the run in (0, 1), ascending"
                )

    def share(self, step: int, num_steps: int) -> float:
        """Of the greatest learning rate, at a step; of `plateau`, as if the loss fell all the time."""
        if self.name == "one_cycle":
            return self._one_cycle(step, num_steps)
        warm = self._warm_steps(num_steps)
        rising = min((step + 1) / warm, 1.0)
        if self.name == "multi_step":
            places = [round(milestone * num_steps) for milestone in self.milestones or MILESTONES]
            return rising * (self.gamma or GAMMA) ** bisect_right(places, step)
        if step < warm or self.name in ("constant", "plateau"):
            return rising
        done = min((step - warm) / max(num_steps - warm, 1), 1.0)
        return 1 - done if self.name == "linear" else _cosine(1.0, 0.0, done)

    def schedulers(self, optimizer: Optimizer, num_steps: int) -> list[dict]:
        """What Lightning's `configure_optimizers` returns beside the optimizer, for a run of `num_steps`.

        The scheduler of `plateau` is there to be stored in checkpoints. Its `step(val_loss)` is the task's to call, as
        soon as there has been a validation: Lightning would do so after the checkpoint of the epoch has been written,
        and a resumed run would go on without it.
        """
        if self.name != "plateau":
            scheduler = LambdaLR(optimizer, lambda step: self.share(step, num_steps))
            return [{"scheduler": scheduler, "interval": "step"}]
        warm = self._warm_steps(num_steps)
        # unlike LambdaLR, it changes the rate that it finds, and that only while it warms up
        rising = LinearLR(optimizer, start_factor=1 / warm, total_iters=warm - 1)
        patience = PATIENCE if self.patience is None else self.patience
        falling = ReduceLROnPlateau(optimizer, factor=self.gamma or GAMMA, patience=patience)
        never = {"interval": "epoch", "frequency": sys.maxsize}
        return [{"scheduler": rising, "interval": "step"}, {"scheduler": falling, "monitor": "val_loss", **never}]

    def _warm_steps(self, num_steps: int) -> int:
        return max(round(self.warmup * num_steps), 1)

    def _one_cycle(self, step: int, num_steps: int) -> float:
        top, end = self.warmup * num_steps - 1, num_steps - 1
        if top > 0 and step <= top:
            return _cosine(1 / DIVIDED_BY, 1.0, step / top)
        return _cosine(1.0, 1 / DIVIDED_BY / THEN_BY, min((step - top) / (end - top), 1.0))


def _cosine(start: float, end: float, done: float) -> float:
    """From start to end, as `done` goes from 0 to 1."""
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2
