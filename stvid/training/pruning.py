"""A run of a search that is not worth finishing."""

from __future__ import annotations

from collections.abc import Callable

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback


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
