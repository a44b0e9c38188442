"""An exponential moving average of the weights, which is what is judged and kept."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor

from stvid.errors import InputError
from stvid.training.sharding import ShardedStrategy


class WeightEMA(WeightAveraging):
    """`average <- d * average + (1 - d) * weights` after every optimizer step, batch norm's statistics included.

    `d = min(decay, (1 + n) / (10 + n))` at step n, counted from 0, so that a short run is not judged by the weights
    it began with (as TensorFlow's `num_updates`). Validation and checkpoints see the average (Tarvainen & Valpola
    2017, arXiv:1703.01780); a checkpoint holds the weights that are trained, too, for a run that goes on.

    Args:
        decay: in [0, 1); 0.999 averages over about the last 1,000 steps.
    """

    def __init__(self, *, decay: float):
        if not 0 <= decay < 1:
            raise InputError(f"ema (={decay}) must lie in [0, 1), or be null for no average")
        super().__init__(multi_avg_fn=self._average)
        self.decay = decay

    def decay_at(self, step: int) -> float:
        """Of the average as it is, in step n."""
        return min(self.decay, (1 + step) / (10 + step))

    def setup(self, trainer: pl.Trainer, task: pl.LightningModule, stage: str) -> None:
        if isinstance(trainer.strategy, ShardedStrategy):
            raise InputError(
                f"ema (={self.decay}): trainer=fsdp keeps no average of the weights; leave one of them out"
            )
        self._device = trainer.strategy.root_device  # the model is not there yet
        super().setup(trainer, task, stage)

    @torch.no_grad()
    def _average(self, averages: list[Tensor], current: list[Tensor], num_averaged: Tensor) -> None:
        if torch.is_floating_point(averages[0]):
            torch._foreach_lerp_(averages, current, 1 - self.decay_at(self._latest_update_step))
        else:  # counters
            torch._foreach_copy_(averages, current)
