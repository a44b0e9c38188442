"""Checkpoints of a run: what is in them, when they are written, and that a kill never leaves half a one.

Randomness is a function of seed, epoch and position (see `ClassificationTask`), so a checkpoint needs no random state:
the weights, the optimizer, schedules, scaler, average, callbacks and the position in the epoch make a resumed run the
same run, to the last bit on a CPU.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import Callback, Checkpoint

from stvid.errors import InputError
from stvid.files import replacing
from stvid.training.callbacks.preemption import Preemption

log = logging.getLogger(__name__)


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside the old one, to the disk, and then puts it in its place."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial, partial.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())


class ValScore(NamedTuple):
    """How good a model is on val: the video accuracy, and the loss, which only decides between equal accuracies."""

    accuracy: float
    loss: float

    def is_better_than(self, other: ValScore | None) -> bool:
        """Whether it beats the best score so far (None: there is none); a score with a NaN beats no other."""
        if other is None:
            return True
        if math.isnan(self.accuracy) or math.isnan(self.loss):
            return False
        return math.isnan(other.accuracy + other.loss) or (self.accuracy, -self.loss) > (other.accuracy, -other.loss)


def val_score(trainer: pl.Trainer) -> ValScore:
    """Of the validation that has just ended; in all processes the first one's, so that they decide alike."""
    metrics = trainer.callback_metrics
    score = [float(metrics[name]) for name in ("val_video_accuracy", "val_loss")]
    return ValScore(*trainer.strategy.broadcast(score))


class BestCheckpoint(Checkpoint):
    """`best.ckpt`: the model with the best score on val (see `ValScore`), written after its validation.

    Args:
        path: of the checkpoint. Its folder may have moved since the run was interrupted.
    """

    def __init__(self, path: Path):
        self.path, self.best = Path(path), None

    def on_validation_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        if not trainer.sanity_checking and (score := val_score(trainer)).is_better_than(self.best):
            self.best = score
            trainer.save_checkpoint(self.path)

    def state_dict(self) -> dict:
        return {"best": self.best and list(self.best)}  # plain data, which `torch.load(weights_only=True)` reads

    def load_state_dict(self, state_dict: dict) -> None:
        self.best = state_dict["best"] and ValScore(*state_dict["best"])


class LastCheckpoint(Checkpoint):
    """`last.ckpt`, from which a run goes on: after every epoch, every so many steps, and when the run is told to stop.

    Args:
        path: of the checkpoint.
        every: optimizer steps between checkpoints within an epoch, at least 1; None: none there.
        preemption: knows whether somebody wants the run to stop. It stops after the step it is at (several processes:
            after the next one), or, where that is the epoch's last, after the epoch.

    Raises:
        InputError: `every` below 1.
    """

    def __init__(self, path: Path, *, every: int | None, preemption: Preemption):
        if every is not None and every < 1:
            raise InputError(f"save_every (={every}) must be at least 1 step, or null for epochs only")
        self.path, self.every, self.preemption = Path(path), every, preemption

    def setup(self, trainer: pl.Trainer, task: pl.LightningModule, stage: str) -> None:
        if trainer.is_global_zero:
            for partial in self.path.parent.glob(".*.partial"):  # a kill's
                partial.unlink(missing_ok=True)

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self.saved = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, task: pl.LightningModule, outputs, batch, batch_idx: int) -> None:
        if trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # validation comes next, or gradients are still being gathered: nothing to go on from
        stop = self.preemption.wanted(task)
        due = self.every is not None and trainer.global_step >= self.saved + self.every
        if stop or due:
            self._save(trainer)
        if stop:
            self.preemption.leave(trainer, self.path.parents[1])

    def on_train_epoch_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self._save(trainer)
        if self.preemption.wanted_by_any(task):
            self.preemption.leave(trainer, self.path.parents[1])

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.path)
        self.saved = trainer.global_step


class EarlyStop(Callback):
    """Stops after so many validations in a row without a better score (see `ValScore`).

    Args:
        patience: validations, at least 1.

    Raises:
        InputError: below 1.
    """

    def __init__(self, *, patience: int):
        if patience < 1:
            raise InputError(f"early_stopping (={patience}) must be at least 1 epoch, or null")
        self.patience, self.wait_count, self.best = patience, 0, None

    def on_validation_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        if (score := val_score(trainer)).is_better_than(self.best):
            self.best, self.wait_count = score, 0
            return
        self.wait_count += 1
        if self.wait_count >= self.patience:
            trainer.should_stop = True
            log.info("stopped early: %d validations without a better result (early_stopping)", self.wait_count)

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        if self.wait_count >= self.patience:  # the run was killed after its last epoch
            trainer.should_stop = True

    def state_dict(self) -> dict:
        return {"best": self.best and list(self.best), "wait_count": self.wait_count}

    def load_state_dict(self, state_dict: dict) -> None:
        self.best, self.wait_count = state_dict["best"] and ValScore(*state_dict["best"]), state_dict["wait_count"]


class TrialPruning(Callback):
    """Ends a run after an epoch if somebody who knows of other runs finds it unpromising.

    Args:
        report: gets the epoch, from 1, and its video accuracy on val; True: stop. Not asked after the last epoch.
    """

    def __init__(self, report: Callable[[int, float], bool]):
        self.report, self.stopped = report, False

    def state_dict(self) -> dict:
        return {"stopped": self.stopped}

    def load_state_dict(self, state_dict: dict) -> None:
        self.stopped = state_dict["stopped"]

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        trainer.should_stop |= self.stopped  # killed after its last epoch

    def on_validation_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if trainer.sanity_checking or epoch >= trainer.max_epochs:
            return
        if self.report(epoch, float(trainer.callback_metrics["val_video_accuracy"])):
            trainer.should_stop = self.stopped = True
