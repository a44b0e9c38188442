"""Unreadable videos of a run: logged once, listed in `bad_videos.csv`; too many stop the run."""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from stvid.checks import read_csv
from stvid.distributed import all_gather_object
from stvid.errors import InputError
from stvid.files import replacing

log = logging.getLogger(__name__)
_ENCODING: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape"}  # file names may be any bytes


def read_bad_videos(path: Path) -> dict[str, str]:
    """Path -> reason of the unreadable videos of a run; empty if there is no file.

    Raises:
        InputError: the file is damaged.
    """
    if not path.exists():
        return {}
    rows = read_csv(path, required=("path", "reason"), remedy="Delete it; it is written again")
    return {row["path"]: row["reason"] for _, row in rows}


class BadVideos(Callback):
    """Records the `failed` entries of every batch; with several processes, gathers them at the end of the epoch.

    Args:
        path: the CSV file (`path,reason`), written as soon as a video is unreadable.
        max_bad: number of different bad videos above which the run stops.
        known: path -> reason of the videos that were already found unreadable, by probing.

    Raises:
        InputError: there are more than `max_bad`.
    """

    def __init__(self, *, path: Path, max_bad: float, known: Mapping[str, str]):
        self.path, self.max_bad, self.known = Path(path), max_bad, known
        self.reasons = read_bad_videos(self.path)  # of a resumed run
        self.reported = set(self.reasons)

    def on_fit_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self._report(self.known, trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, task: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._record(trainer, batch)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        task: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._record(trainer, batch)

    def on_train_epoch_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        if trainer.world_size > 1:
            gathered = all_gather_object(self.reasons)
            self._report({path: reason for reasons in gathered for path, reason in reasons.items()}, trainer)

    def _record(self, trainer: pl.Trainer, batch: Mapping) -> None:
        reasons = {failure.path: failure.reason for failure in batch["failed"]}
        if trainer.world_size == 1:
            self._report(reasons, trainer)
        else:
            self.reasons |= reasons

    def _report(self, reasons: Mapping[str, str], trainer: pl.Trainer) -> None:
        """Logs new bad videos, writes the file, and raises an error if there are too many."""
        new = {path: reason for path, reason in sorted(reasons.items()) if path not in self.reported}
        if not new:
            return
        self.reported |= set(new)
        self.reasons |= new
        for path, reason in new.items():
            log.warning("unreadable video, left out (%s): %s", reason, path)
        if trainer.is_global_zero:
            with replacing(self.path) as partial, partial.open("w", newline="", **_ENCODING) as file:
                csv.writer(file).writerows([("path", "reason"), *sorted(self.reasons.items())])
        if len(self.reasons) > self.max_bad:
            raise InputError(
                f"{len(self.reasons)} videos cannot be read, more than data.max_bad allows ({self.max_bad:g}); they "
                f"are listed in {self.path}. Repair or remove them, or allow more: data.max_bad=1"
            )
