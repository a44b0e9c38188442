"""Videos that cannot be read during a run: each named once, all of them in `bad_videos.csv`, too many stop it."""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from stvid.errors import InputError
from stvid.files import replacing

log = logging.getLogger(__name__)
_TEXT = {"encoding": "utf-8", "errors": "surrogateescape"}  # file names are bytes


def read_bad_videos(path: Path) -> dict[str, str]:
    """Path -> reason of the videos that a run has met; none where there is no file."""
    if not path.exists():
        return {}
    with path.open(newline="", **_TEXT) as file:
        return {row["path"]: row["reason"] for row in csv.DictReader(file)}


class BadVideos(Callback):
    """Takes note of the `failed` entries of every batch; of several processes', at the end of the epoch.

    Args:
        path: the CSV file (`path,reason`), written as soon as there is anything to write.
        most: number of different bad videos above which the run stops.
        known: path -> reason of those that probing has found.

    Raises:
        InputError: there are more than `most`.
    """

    def __init__(self, *, path: Path, most: float, known: Mapping[str, str]):
        self.path, self.most, self.known = Path(path), most, known
        self.reasons = read_bad_videos(self.path)  # of a run that goes on
        self.told = set(self.reasons)

    def on_fit_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self._add(self.known, trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, task, outputs, batch: Mapping, batch_idx: int) -> None:
        self._note(trainer, batch)

    def on_validation_batch_end(self, trainer: pl.Trainer, task, outputs, batch: Mapping, batch_idx: int) -> None:
        self._note(trainer, batch)

    def on_train_epoch_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        if trainer.world_size > 1:  # each process has met its own
            everybody: list[dict[str, str]] = [{}] * trainer.world_size
            torch.distributed.all_gather_object(everybody, self.reasons)
            self._add({path: reason for reasons in everybody for path, reason in reasons.items()}, trainer)

    def _note(self, trainer: pl.Trainer, batch: Mapping) -> None:
        met = {failure.path: failure.reason for failure in batch["failed"]}
        if trainer.world_size == 1:
            self._add(met, trainer)
        else:
            self.reasons |= met

    def _add(self, met: Mapping[str, str], trainer: pl.Trainer) -> None:
        new = {path: reason for path, reason in sorted(met.items()) if path not in self.told}
        if not new:
            return
        self.told |= set(new)
        self.reasons |= new
        for path, reason in new.items():
            log.warning("left out, cannot be read (%s): %s", reason, path)
        if trainer.is_global_zero:
            with replacing(self.path) as partial, partial.open("w", newline="", **_TEXT) as file:
                csv.writer(file).writerows([("path", "reason"), *sorted(self.reasons.items())])
        if len(self.reasons) > self.most:
            raise InputError(
                f"{len(self.reasons)} videos cannot be read, more than data.max_bad allows ({self.most:g}); they are "
                f"listed in {self.path}. Mend or remove them, or allow more: data.max_bad=1"
            )
