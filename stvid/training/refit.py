"""The same training again on train and val together, once the number of epochs is known: `refit=true`."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import pytorch_lightning as pl

from stvid.data.datamodule import VideoDataModule
from stvid.errors import train_command
from stvid.training.callbacks.bad_videos import BadVideos
from stvid.training.callbacks.preemption import keep_interrupts
from stvid.training.callbacks.progress import ProgressBar
from stvid.training.ema import WeightEMA

log = logging.getLogger(__name__)


def refit(
    make_trainer: Callable[..., pl.Trainer],
    task: pl.LightningModule,
    data: VideoDataModule,
    checkpoint: Path,
    bad_videos: Path,
    *,
    num_epochs: int,
    ema: float | None,
) -> None:
    """Trains a new model without validation and writes it; an interrupted refit starts again when the run is resumed.

    Args:
        make_trainer: called with the arguments of Lightning's trainer that differ from those of the run.
        task: with a new model.
        data: after `move_val_to_train`.
        checkpoint: file of the model.
        bad_videos: see `BadVideos`.
        num_epochs: those of the checkpoint that was evaluated on val.
        ema: see `WeightEMA`; None: without.
    """
    callbacks = [
        *([] if ema is None else [WeightEMA(decay=ema)]),
        BadVideos(path=bad_videos, max_bad=data.max_bad_videos, known=data.bad),
        ProgressBar(),
    ]
    arguments = {"logger": False, "enable_checkpointing": False, "limit_val_batches": 0}
    trainer = make_trainer(callbacks=callbacks, max_epochs=num_epochs, **arguments)
    log.info("refit: %d epochs on %d videos, those of train and val", num_epochs, len(data.train))
    began = time.perf_counter()
    try:
        with keep_interrupts():
            trainer.fit(task, datamodule=data)
    except (KeyboardInterrupt, SystemExit):
        log.info("the refit starts again with   %s", train_command(f"resume={checkpoint.parents[1]}"))
        raise
    trainer.save_checkpoint(checkpoint)
    log.info("refit: trained in %.1f s, saved in %s", time.perf_counter() - began, checkpoint)
