"""Exponential moving average of the weights, used for validation and checkpoints."""

from __future__ import annotations

from collections import defaultdict
from itertools import chain
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor, nn

from stvid.errors import InputError
from stvid.training.parallel import ShardedStrategy


class WeightEMA(WeightAveraging):
    """`average <- d * average + (1 - d) * weights` after every optimizer step, including batch norm statistics.

    `d = min(decay, (1 + n) / (10 + n))` at step n, counted from 0, so that the initial weights have little influence
    in a short run (as `num_updates` in TensorFlow). Validation and checkpoints use the average (Tarvainen & Valpola
    2017, arXiv:1703.01780). A checkpoint also contains the weights in training, which a resumed run needs.

    Args:
        decay: in [0, 1); 0.999 averages over about the last 1,000 steps.

    Raises:
        InputError: `decay` is out of range, or training is sharded (`trainer=fsdp`).
    """

    def __init__(self, *, decay: float):
        if not 0 <= decay < 1:
            raise InputError(f"ema (={decay}) must lie in [0, 1), or be null for no average")
        super().__init__()
        self.decay = decay

    def decay_at(self, step: int) -> float:
        """The decay d at a step, counted from 0."""
        return min(self.decay, (1 + step) / (10 + step))

    def setup(self, trainer: pl.Trainer, task: pl.LightningModule, stage: str) -> None:
        if isinstance(trainer.strategy, ShardedStrategy):
            raise InputError(f"ema (={self.decay}) does not work with trainer=fsdp; use ema=null or another trainer")
        self._device = trainer.strategy.root_device  # the model is moved there later
        super().setup(trainer, task, stage)

    def on_train_batch_end(
        self, trainer: pl.Trainer, task: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step > self._latest_update_step:
            self._update(task)
            self._latest_update_step = trainer.global_step

    @torch.no_grad()
    def _update(self, task: nn.Module) -> None:
        """Like torch's `AveragedModel.update_parameters`, which synchronises with the GPU to read its counter."""
        average = self._average_model
        assert average is not None  # since `setup`
        groups: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for mean, weight in zip(_tensors(average.module), _tensors(task), strict=True):
            groups[mean.dtype].append((mean, weight))
        for dtype, pairs in groups.items():
            means, current = map(list, zip(*pairs, strict=True))
            if dtype.is_floating_point and self._latest_update_step > 0:
                torch._foreach_lerp_(means, current, 1 - self.decay_at(self._latest_update_step))
            else:  # integer buffers, and all tensors in the first step
                torch._foreach_copy_(means, current)
        average.n_averaged += 1


def _tensors(module: nn.Module) -> chain[Tensor]:
    return chain(module.parameters(), module.buffers())
