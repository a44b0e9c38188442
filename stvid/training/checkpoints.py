"""Checkpoints of a run: what is in them, when they are written, and that a kill never leaves half a one.

Randomness is a function of seed, epoch and position (see `ClassificationTask`), so a checkpoint needs no random state:
the weights, the optimizer, schedules, scaler, average, callbacks and the position in the epoch make a resumed run the
same run, to the last bit on a CPU.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint

from stvid.errors import InputError
from stvid.files import replacing
from stvid.training.preemption import Preemption

log = logging.getLogger(__name__)


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside the old one, to the disk, and then puts it in its place."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial, partial.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())


class BestCheckpoint(ModelCheckpoint):
    """`best.ckpt`, by `val_criterion`, in a run folder that may be moved between a run's beginning and its end.

    Lightning's own forgets what its best so far was when the folder has another name than at the last save.
    """

    def __init__(self, folder: Path):
        super().__init__(folder, "best", "val_criterion", mode="max", enable_version_counter=False)

    def load_state_dict(self, state_dict: dict) -> None:
        def here(path: str) -> str:
            return os.path.join(self.dirpath, os.path.basename(path)) if path else path

        paths = {key: here(state_dict[key]) for key in ("best_model_path", "kth_best_model_path", "last_model_path")}
        best = {here(path): value for path, value in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": best, "dirpath": self.dirpath})


class LastCheckpoint(Checkpoint):
    """`last.ckpt`, from which a run goes on: after every epoch, every so many steps, and when the run is told to stop.

    Args:
        folder: where it lies.
        every: optimizer steps between checkpoints within an epoch, at least 1; None: none there.
        preemption: knows whether somebody wants the run to stop. It stops after the step it is at, or, where that is
            the epoch's last, after the epoch.

    Raises:
        InputError: `every` below 1.
    """

    def __init__(self, folder: Path, *, every: int | None, preemption: Preemption):
        if every is not None and every < 1:
            raise InputError(f"save_every (={every}) must be at least 1 step, or null for epochs only")
        self.path, self.every, self.preemption = Path(folder) / "last.ckpt", every, preemption

    def setup(self, trainer: pl.Trainer, task: pl.LightningModule, stage: str) -> None:
        if trainer.is_global_zero:
            for partial in self.path.parent.glob(".*.partial"):  # a kill's
                partial.unlink(missing_ok=True)

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self.saved = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, task: pl.LightningModule, outputs, batch, batch_idx: int) -> None:
        if trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # validation comes next, or gradients are still being gathered: nothing to go on from
        stop = self.preemption.wanted(trainer)
        due = self.every is not None and trainer.global_step >= self.saved + self.every
        if stop or due:
            self._save(trainer)
        if stop:
            self.preemption.leave(trainer, self.path.parents[1])

    def on_train_epoch_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self._save(trainer)
        if self.preemption.wanted(trainer):
            self.preemption.leave(trainer, self.path.parents[1])

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.path)
        self.saved = trainer.global_step


class EarlyStop(EarlyStopping):
    """Stops when `val_criterion` has not grown for so many validations.

    Lightning's own would train another epoch where a run was killed after its last and goes on.

    Args:
        patience: validations, at least 1.

    Raises:
        InputError: below 1.
    """

    def __init__(self, *, patience: int):
        if patience < 1:
            raise InputError(f"early_stopping (={patience}) must be at least 1 epoch, or null")
        super().__init__("val_criterion", mode="max", patience=patience, check_on_train_epoch_end=False)

    def on_validation_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        super().on_validation_end(trainer, task)
        if self.wait_count >= self.patience:
            log.info("stopped early: %d validations without a better result (early_stopping)", self.wait_count)

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict({**state_dict, "patience": self.patience})  # it may have been changed

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        if self.wait_count >= self.patience:
            trainer.should_stop = True
