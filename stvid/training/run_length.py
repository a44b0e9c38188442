"""How many epochs a run has: with few videos, an epoch has few optimizer steps."""

from __future__ import annotations

import logging
import math

import pytorch_lightning as pl

from stvid.data.datamodule import VideoDataModule

log = logging.getLogger("stvid")


def num_epochs(max_epochs: int, min_steps: int | None, data: VideoDataModule, trainer: pl.Trainer) -> int:
    """`max_epochs`, or as many epochs as `min_steps` optimizer steps need.

    Args:
        max_epochs: from 1.
        min_steps: optimizer steps that a run is planned for at least; None: no lower limit.
        data: set up; an epoch has full batches only, unless it is smaller than one.
        trainer: of the run.
    """
    if min_steps is None:
        return max_epochs
    num_batches = max(len(data.train) // (data.clips_per_batch * trainer.world_size), 1)
    steps = math.ceil(num_batches / trainer.accumulate_grad_batches)
    epochs = max(max_epochs, math.ceil(min_steps / steps))
    if epochs > max_epochs:
        log.info(
            "%d epochs instead of %d (trainer.max_epochs): an epoch has %d optimizer step%s, and min_steps is %d",
            epochs,
            max_epochs,
            steps,
            "" if steps == 1 else "s",
            min_steps,
        )
    return epochs
