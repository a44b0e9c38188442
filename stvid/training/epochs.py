"""What a run shows while it trains: a bar, and a line an epoch that is also a row of `metrics.csv`."""

from __future__ import annotations

import csv
import logging
import time
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from tqdm import tqdm

from stvid.files import replacing

log = logging.getLogger(__name__)

COLUMNS = (
    "epoch",
    "step",
    "lr",
    "train_loss",
    "train_clip_accuracy",
    "val_loss",
    "val_clip_accuracy",
    "val_video_accuracy",
    "clips_per_second",
    "seconds",
)


class EpochTable(Callback):
    """Writes `metrics.csv` and logs the same row: the last step's learning rate, clips/s of the training part.

    A run that goes on (`resume`) keeps the rows of the epochs behind its checkpoint and writes the others anew.

    Args:
        path: the CSV file.
    """

    def __init__(self, *, path: Path):
        self.path = Path(path)
        self.rows: list[dict[str, str]] = []

    @property
    def seconds(self) -> float:
        """Of all epochs, also those before a resumed run was interrupted."""
        return round(sum(float(row["seconds"]) for row in self.rows), 1)

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        if self.path.exists():
            with self.path.open(newline="") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["epoch"]) <= trainer.current_epoch]

    def on_train_epoch_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self.started, self.training_seconds, self.clips = time.perf_counter(), 0.0, 0
        self.validated = False

    def on_train_batch_start(self, trainer: pl.Trainer, task: pl.LightningModule, batch, batch_idx) -> None:
        self.lr = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(self, trainer: pl.Trainer, task: pl.LightningModule, outputs, batch, batch_idx) -> None:
        self.clips += len(batch["labels"]) * trainer.world_size
        self.training_seconds = time.perf_counter() - self.started

    def on_validation_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self.validated = True

    def on_train_epoch_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        measured = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if not self.validated:  # what is there is left from an earlier epoch
            measured = {name: value for name, value in measured.items() if not name.startswith("val_")}
        row = {
            **{name: f"{measured[name]:.6g}" for name in COLUMNS if name in measured},
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            "lr": f"{self.lr:.4g}",
            "clips_per_second": f"{self.clips / max(self.training_seconds, 1e-9):.1f}",
            "seconds": f"{time.perf_counter() - self.started:.1f}",
        }
        self.rows.append(row)
        if trainer.is_global_zero:
            self._write()
            self._tell(row, trainer)

    def on_exception(self, trainer: pl.Trainer, task: pl.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, KeyboardInterrupt):
            kept, run = len(self.rows), self.path.parent
            log.info("\ninterrupted; %d epochs are kept. Go on with: python train.py resume=%s", kept, run)

    def _write(self) -> None:
        with replacing(self.path) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows)

    def _tell(self, row: dict, trainer: pl.Trainer) -> None:
        def number(name: str, style: str) -> str:
            return format(float(row[name]), style) if name in row else "-"

        line = (
            f"epoch {row['epoch']:>3}/{trainer.max_epochs}   "
            f"train loss {number('train_loss', '.3f')}, clip accuracy {number('train_clip_accuracy', '.3f')}   "
            f"val loss {number('val_loss', '.3f')}, clip accuracy {number('val_clip_accuracy', '.3f')}, "
            f"video accuracy {number('val_video_accuracy', '.3f')}   {row['clips_per_second']} clips/s"
        )
        log.info(line)


class ProgressBar(Callback):
    """One bar an epoch, with loss and clips/s, gone when the epoch is over; no bar where the output is no terminal."""

    def on_train_epoch_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self.started, self.clips = time.perf_counter(), 0
        name = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        disable = None if trainer.is_global_zero else True  # None: tqdm looks whether there is a terminal
        self.bar = tqdm(total=trainer.num_training_batches, desc=name, unit="batch", leave=False, disable=disable)

    def on_train_batch_end(self, trainer: pl.Trainer, task: pl.LightningModule, outputs, batch, batch_idx) -> None:
        self.clips += len(batch["labels"]) * trainer.world_size
        self.bar.update()
        if not self.bar.disable and outputs and batch_idx % 10 == 0:  # reading the loss makes a GPU wait
            speed = self.clips / (time.perf_counter() - self.started)
            self.bar.set_postfix_str(f"loss {float(outputs['loss']):.3f}, {speed:.0f} clips/s")

    def on_validation_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        if not trainer.sanity_checking and hasattr(self, "bar"):
            self.bar.set_postfix_str("validating")

    def on_train_epoch_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self.bar.close()
