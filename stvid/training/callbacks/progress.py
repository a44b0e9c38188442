"""What a run shows while it trains: a bar, and a line an epoch that is also a row of `metrics.csv`."""

from __future__ import annotations

import csv
import logging
import time
from collections.abc import Mapping
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from stvid.device import GIB, HostCopy, num_cores, peak_host_gib
from stvid.errors import train_command
from stvid.files import replacing
from stvid.progress import Bar
from stvid.training.callbacks.throughput import ThroughputMeter, advice

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
    "memory_gib",
    "waiting",
    "seconds",
)
WORTH_SECONDS = 5.0  # of training in an epoch, below which waiting is nobody's trouble
# columns on the screen: name, two lines of header, width, how a number is shown
SHOWN = (
    ("train_loss", "train", "loss", 8, "{:.3f}"),
    ("train_clip_accuracy", "train clip", "accuracy", 12, "{:.3f}"),
    ("val_loss", "val", "loss", 8, "{:.3f}"),
    ("val_clip_accuracy", "val clip", "accuracy", 10, "{:.3f}"),
    ("val_video_accuracy", "val video", "accuracy", 11, "{:.3f}"),
    ("clips_per_second", "", "clips/s", 10, "{:.1f}"),
    ("memory_gib", "memory", "GiB", 8, "{:.2f}"),
    ("waiting", "waiting", "for data", 10, "{:.0%}"),
)


class EpochTable(Callback):
    """Writes `metrics.csv` and logs the same row: the last step's learning rate, clips/s of the training part.

    `memory_gib` is the most memory that the epoch's tensors took on a GPU, or where the CPU trains, that this process
    has had so far; `waiting` the share of the training part spent waiting for data. Where that is much, one line says
    what would help, after the second epoch or the only one.

    A run that goes on (`resume`) keeps the rows of the epochs behind its checkpoint and writes the others anew; of an
    epoch that it goes on with in the middle, speed, memory, waiting and seconds are those of the rest.

    Args:
        path: the CSV file.
    """

    def __init__(self, *, path: Path):
        self.path = Path(path)
        self.rows: list[dict[str, str]] = []
        self.epochs = 0  # since this process trains
        self.advised = False

    @property
    def seconds(self) -> float:
        """Of all epochs; of one in which the run was interrupted, of what was done after that."""
        return round(sum(float(row["seconds"]) for row in self.rows), 1)

    def summary(self) -> dict:
        """Of all epochs: `training_seconds`, `clips_per_second`, `waiting`, `peak_memory_gib`, as in `result.json`."""

        def numbers(name: str, rows: list[dict[str, str]]) -> list[float]:
            return [float(row[name]) for row in rows]

        timed = [row for row in self.rows if float(row["clips_per_second"])]
        told = [row for row in timed if row.get("waiting")]  # rows of an older version have none
        each = [1 / speed for speed in numbers("clips_per_second", timed)]  # seconds a clip: all epochs have as many
        weights = [1 / speed for speed in numbers("clips_per_second", told)]
        waiting = sum(w * share for w, share in zip(weights, numbers("waiting", told), strict=True))
        peaks = numbers("memory_gib", [row for row in self.rows if row.get("memory_gib")])
        on_gpu = torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0
        host = [gib for gib in (*(() if on_gpu else peaks), peak_host_gib()) if gib is not None]
        return {
            "training_seconds": self.seconds,
            "clips_per_second": round(len(each) / sum(each), 2) if each else None,
            "waiting": round(waiting / sum(weights), 4) if weights else None,
            "peak_memory_gib": {"host": max(host, default=None), "gpu": max(peaks, default=None) if on_gpu else None},
        }

    def setup(self, trainer: pl.Trainer, task: pl.LightningModule, stage: str) -> None:
        if self.path.exists():  # of a run that may have nothing left to train
            with self.path.open(newline="") as file:
                self.rows = list(csv.DictReader(file))

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self.rows = [row for row in self.rows if int(row["epoch"]) <= trainer.current_epoch]
        self.lr = trainer.optimizers[0].param_groups[0]["lr"]
        if trainer.is_global_zero:
            for line in header():
                log.info(line)
        self.on_train_epoch_start(trainer, task)  # Lightning does not say so in an epoch that has begun before

    def on_train_epoch_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self.started, self.meter, self.validated = time.perf_counter(), ThroughputMeter(trainer), False
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(trainer.strategy.root_device)

    def on_train_batch_start(self, trainer: pl.Trainer, task: pl.LightningModule, batch, batch_idx) -> None:
        self.lr = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(self, trainer: pl.Trainer, task: pl.LightningModule, outputs, batch, batch_idx) -> None:
        self.meter.add(batch)

    def on_validation_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.meter.pause()

    def on_validation_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.meter.go_on()
            self.validated = True

    def on_train_epoch_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        measured = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if not self.validated:  # what is there is left from an earlier epoch
            measured = {name: value for name, value in measured.items() if not name.startswith("val_")}
        waiting, memory = self.meter.waiting, peak_gib(trainer.strategy.root_device)
        row = {
            **{name: f"{measured[name]:.6g}" for name in COLUMNS if name in measured},
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            "lr": f"{self.lr:.4g}",
            "clips_per_second": f"{self.meter.speed:.3f}",
            "memory_gib": "" if memory is None else f"{memory:.3f}",
            "waiting": "" if waiting is None else f"{waiting:.4f}",
            "seconds": f"{time.perf_counter() - self.started:.1f}",
        }
        self.rows.append(row)
        self.epochs += 1
        if trainer.is_global_zero:
            self._write()
            log.info(line_of(row, trainer.max_epochs))
            self._advise(waiting, trainer)

    def on_exception(self, trainer: pl.Trainer, task: pl.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, KeyboardInterrupt):
            again = train_command(f"resume={self.path.parent}")
            log.info("\ninterrupted; %d epochs are kept. Go on with: %s", len(self.rows), again)

    def _write(self) -> None:
        with replacing(self.path) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows)

    def _advise(self, waiting: float | None, trainer: pl.Trainer) -> None:
        settled = self.epochs > 1 or trainer.current_epoch + 1 == trainer.max_epochs  # readers start in the first epoch
        if self.advised or not settled or self.meter.seconds < WORTH_SECONDS:
            return
        on_cpu = trainer.strategy.root_device.type == "cpu"
        words = advice(
            waiting or 0.0,
            num_workers=getattr(trainer.train_dataloader, "num_workers", 0),
            num_cores=max(num_cores() // trainer.num_devices, 1),
            num_threads=torch.get_num_threads() if on_cpu else 0,
            stored=bool(getattr(trainer.datamodule, "cached", None)),
        )
        if words:
            log.info(words)
            self.advised = True


def peak_gib(device: torch.device) -> float | None:
    """The most memory that tensors took on a GPU since its statistics were reset; elsewhere, this process's peak."""
    return torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else peak_host_gib()


def header() -> list[str]:
    """Two lines above what `line_of` gives."""
    top, bottom = ("".join(column[i].rjust(column[3]) for column in SHOWN) for i in (1, 2))
    return [f"{'':>8}{top}", f"{'epoch':>8}{bottom}"]


def line_of(row: Mapping[str, object], max_epochs: int) -> str:
    """A row as the screen shows it; a dash where a value is missing."""
    cells = [(style.format(float(row[name])) if row.get(name) else "-").rjust(w) for name, _, _, w, style in SHOWN]
    return f"{row['epoch']}/{max_epochs}".rjust(8) + "".join(cells)


class ProgressBar(Callback):
    """One bar an epoch, gone when it is over, with loss, clips/s and waiting; see `Bar` for when there is one."""

    bar: Bar | None = None
    loss: HostCopy | None = None  # to be shown, of this step or one before

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        if trainer.fit_loop.restarted_mid_epoch:
            self._open(trainer, done=trainer.fit_loop.epoch_loop.batch_progress.current.ready)

    def on_train_epoch_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self._open(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, task: pl.LightningModule, outputs, batch, batch_idx) -> None:
        self.meter.add(batch)
        note = None
        if self.bar.due and outputs:
            loss = trainer.callback_metrics.get("train_loss_step", outputs["loss"])  # the latter is scaled for a sum
            self.loss = self.loss or HostCopy(loss)
            if self.loss.is_ready:
                waiting = self.meter.waiting_so_far
                note = f"loss {self.loss.read():.3f}, {self.meter.speed:.0f} clips/s"
                note += "" if waiting is None else f", waiting {waiting:.0%}"
                self.loss = None
        self.bar.advance(note=note)

    def on_validation_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        if self.bar:
            self.meter.pause()
            self.bar.note("validating")

    def on_validation_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        if self.bar:
            self.meter.go_on()

    def on_train_epoch_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: pl.Trainer, task: pl.LightningModule, exception: BaseException) -> None:
        self._close()

    def _open(self, trainer: pl.Trainer, *, done: int = 0) -> None:
        self._close()
        name = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        total, shown = trainer.num_training_batches, trainer.is_global_zero
        self.bar, self.meter = Bar(name, total=total, unit="batches", shown=shown), ThroughputMeter(trainer)
        self.bar.start(done=done)

    def _close(self) -> None:
        if self.bar:
            self.bar.close()
        self.bar = None
