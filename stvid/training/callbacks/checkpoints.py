"""Checkpoints of a run, early stopping and pruning.

All randomness is derived from (seed, epoch, step, rank), see `ClassificationTask`, so a checkpoint needs no random
state. Weights, optimizer, schedules, gradient scaler, weight average, callbacks and the position in the epoch are
enough for a resumed run to give the same result; on a CPU, bit by bit.
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

from stvid.checks import fields, flag, maybe, number
from stvid.errors import InputError
from stvid.files import replacing
from stvid.training.callbacks.preemption import Preemption

log = logging.getLogger(__name__)
SELECT = ("best", "last")  # epochs that `best.ckpt` can hold


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file and then replaces the old one, so a kill never leaves a partial file."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial, partial.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())


class ValScore(NamedTuple):
    """Result on val: the video accuracy, and the loss, which only breaks ties."""

    accuracy: float
    loss: float

    def is_better_than(self, other: ValScore | None) -> bool:
        """Whether it is better than the best score so far (None: there is none). A score with NaN is never better."""
        if other is None:
            return True
        if math.isnan(self.accuracy) or math.isnan(self.loss):
            return False
        return math.isnan(other.accuracy + other.loss) or (self.accuracy, -self.loss) > (other.accuracy, -other.loss)


def _check_score(value: Any, place: str) -> None:
    """A `ValScore` in a checkpoint; its numbers may be NaN."""
    if not (isinstance(value, list) and len(value) == 2 and all(isinstance(part, float) for part in value)):
        raise InputError(f"{place} is {str(value)[:40]!r}, must be the accuracy and the loss")


def val_score(trainer: pl.Trainer) -> ValScore:
    """Score of the validation that just ended; that of rank 0 in all processes, so that they decide alike."""
    metrics = trainer.callback_metrics
    score = [float(metrics[name]) for name in ("val_video_accuracy", "val_loss")]
    return ValScore(*trainer.strategy.broadcast(score))


class BestCheckpoint(Checkpoint):
    """Writes `best.ckpt` after each validation with a new best score (see `ValScore`), or after every validation.

    Args:
        path: file of the checkpoint. Its folder may have been moved since the run was interrupted.
        select: `best` or `last`. With a few dozen val videos, the best of many epochs is luck; the last epoch of a
            schedule that ends at a low learning rate is not.

    Raises:
        InputError: another `select`.
    """

    def __init__(self, path: Path, *, select: str = "best"):
        if select not in SELECT:
            raise InputError(f"checkpoint (={select}) must be one of {', '.join(SELECT)}")
        self.path, self.select = Path(path), select
        self.best: ValScore | None = None

    def on_validation_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        if self.select == "last" or val_score(trainer).is_better_than(self.best):
            self.best = val_score(trainer)
            trainer.save_checkpoint(self.path)

    def state_dict(self) -> dict:
        return {"best": self.best and list(self.best)}  # plain data for `torch.load(weights_only=True)`

    def load_state_dict(self, state_dict: dict) -> None:
        fields({"best": maybe(_check_score)})(state_dict, "the checkpoint's BestCheckpoint")
        self.best = state_dict["best"] and ValScore(*state_dict["best"])


class LastCheckpoint(Checkpoint):
    """Writes `last.ckpt`, from which a run is resumed: after epochs, every N steps, and when a signal stops the run.

    Args:
        path: file of the checkpoint.
        every: optimizer steps between checkpoints within an epoch, at least 1; None: only after epochs.
        preemption: says whether the run received a signal to stop. It stops after the current step (with several
            processes after the next one); if that is the last step of the epoch, after the epoch.

    Raises:
        InputError: `every` below 1.
    """

    def __init__(self, path: Path, *, every: int | None, preemption: Preemption):
        if every is not None and every < 1:
            raise InputError(f"save_every (={every}) must be at least 1 step, or null for epochs only")
        self.path, self.every, self.preemption = Path(path), every, preemption

    def setup(self, trainer: pl.Trainer, task: pl.LightningModule, stage: str) -> None:
        if trainer.is_global_zero:
            for partial in self.path.parent.glob(".*.partial"):  # left by a kill
                partial.unlink(missing_ok=True)

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self.saved_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, task: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # validation follows, or gradients are still accumulated: no state to resume from
        must_stop = self.preemption.is_requested(task)
        is_due = self.every is not None and trainer.global_step >= self.saved_step + self.every
        if must_stop or is_due:
            self._save(trainer)
        if must_stop:
            self.preemption.exit(trainer, self.path.parents[1])

    def on_train_epoch_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self._save(trainer)
        if self.preemption.is_requested_anywhere(task):
            self.preemption.exit(trainer, self.path.parents[1])

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.path)
        self.saved_step = trainer.global_step


class EarlyStop(Callback):
    """Stops after `patience` validations in a row without a better score (see `ValScore`).

    Args:
        patience: validations, at least 1.

    Raises:
        InputError: `patience` below 1.
    """

    def __init__(self, *, patience: int):
        if patience < 1:
            raise InputError(f"early_stopping (={patience}) must be at least 1 epoch, or null")
        self.patience, self.wait_count = patience, 0
        self.best: ValScore | None = None

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
        if self.wait_count >= self.patience:  # the run was killed after the stop
            trainer.should_stop = True

    def state_dict(self) -> dict:
        return {"best": self.best and list(self.best), "wait_count": self.wait_count}

    def load_state_dict(self, state_dict: dict) -> None:
        check = fields({"best": maybe(_check_score), "wait_count": number(0, whole=True)})
        check(state_dict, "the checkpoint's EarlyStop")
        self.best, self.wait_count = state_dict["best"] and ValScore(*state_dict["best"]), state_dict["wait_count"]


class TrialPruning(Callback):
    """Stops an unpromising trial of a sweep after an epoch.

    Args:
        report: called with the epoch, from 1, and its video accuracy on val; returns True to stop the trial. Not called
            after the last epoch.
    """

    def __init__(self, report: Callable[[int, float], bool]):
        self.report, self.stopped = report, False

    def state_dict(self) -> dict:
        return {"stopped": self.stopped}

    def load_state_dict(self, state_dict: dict) -> None:
        fields({"stopped": flag})(state_dict, "the checkpoint's TrialPruning")
        self.stopped = state_dict["stopped"]

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        trainer.should_stop |= self.stopped  # the run was killed after the stop

    def on_validation_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if trainer.sanity_checking or epoch >= trainer.max_epochs:  # type: ignore[operator] # never None
            return
        if self.report(epoch, float(trainer.callback_metrics["val_video_accuracy"])):
            trainer.should_stop = self.stopped = True
