"""Progress of a training run: a bar, and one line per epoch that is also a row of `metrics.csv`."""

from __future__ import annotations

import csv
import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from stvid.checks import fields, number, read_csv
from stvid.device import GIB, HostCopy, num_cores, peak_host_gib
from stvid.disks import full_disk_error
from stvid.errors import InputError, train_command
from stvid.files import replacing
from stvid.progress import Bar
from stvid.training.callbacks.headspace import HeadspaceProbe, headspace_line
from stvid.training.callbacks.throughput import ThroughputMeter, data_bound_advice
from stvid.training.task import ClassificationTask

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
    "free_clips_per_second",
    "seconds",
)
MIN_SECONDS_FOR_ADVICE = 5.0  # training time of an epoch
# columns on the screen, 79 wide with the epoch: name, two header lines, width, number format
SCREEN_COLUMNS = (
    ("train_loss", "train", "loss", 8, "{:.3f}"),
    ("train_clip_accuracy", "train clip", "accuracy", 11, "{:.3f}"),
    ("val_loss", "val", "loss", 7, "{:.3f}"),
    ("val_clip_accuracy", "val clip", "accuracy", 10, "{:.3f}"),
    ("val_video_accuracy", "val video", "accuracy", 10, "{:.3f}"),
    ("clips_per_second", "", "clips/s", 8, "{:.1f}"),
    ("memory_gib", "memory", "GiB", 8, "{:.2f}"),
    ("waiting", "waiting", "for data", 9, "{:.0%}"),
)


def read_epochs(path: Path, *, required: Sequence[str] = ("epoch",)) -> list[dict[str, str]]:
    """Reads `metrics.csv`: a row for each epoch, all cells empty or numbers; empty if there is no file.

    Args:
        path: the file.
        required: columns that must be filled.

    Raises:
        InputError: the file is damaged.
    """
    if not path.exists():
        return []
    remedy = "Move it away; the run goes on without the rows of the epochs so far"
    rows = read_csv(path, required=required, remedy=remedy)
    for line, row in rows:
        for name in COLUMNS:
            if not _is_cell(row.get(name, ""), whole=name in ("epoch", "step"), can_be_empty=name not in required):
                raise InputError(f"{path}, line {line} is damaged or was changed: {name} is {row[name]!r}. {remedy}")
    return [row for _, row in rows]


def _is_cell(cell: str, *, whole: bool, can_be_empty: bool) -> bool:
    """Whether a cell holds a number that an `EpochTable` can have written."""
    if whole and cell:
        return cell.isascii() and cell.isdigit() and len(cell) < 16
    try:
        value = float(cell or "nan")
    except ValueError:
        return False
    return bool(cell or can_be_empty) and (can_be_empty or 0 <= value < math.inf)


class EpochTable(Callback):
    """Writes `metrics.csv` and logs the same row after each epoch.

    `lr` is the learning rate of the last step. `clips_per_second` and `waiting`, the share of the time spent waiting
    for data, exclude validation. `memory_gib` is the peak GPU memory of the epoch's tensors or, when training on the
    CPU, the peak memory of the process so far. If `waiting` is high, one line of advice is logged after the second
    epoch, or after the only one. `free_clips_per_second` is measured once, after the first epoch, see `HeadspaceProbe`.

    A resumed run keeps the rows of the epochs before its checkpoint. If it starts within an epoch, speed, memory,
    waiting and seconds of that row are those of the remaining part.

    Args:
        path: the CSV file.
        headspace: measure `free_clips_per_second`.
    """

    def __init__(self, *, path: Path, headspace: bool = False):
        self.path = Path(path)
        self.probe = HeadspaceProbe() if headspace else None
        self.rows: list[dict[str, str]] = []
        self.num_epochs = 0  # in this process
        self.encoding_seconds = 0.0  # for the cached features of a frozen encoder, before the first epoch
        self.has_advised = False

    @property
    def seconds(self) -> float:
        """Duration of all epochs; of an interrupted epoch, only the part after the last resume."""
        return round(sum(float(row["seconds"]) for row in self.rows), 1)

    def summary(self) -> dict:
        """What the training took, for `result.json`.

        `training_seconds` are those of all epochs and `encoding_seconds`; `clips_per_second`, `waiting` and
        `peak_memory_gib` are those of the epochs. `headspace` is `free_clips_per_second / clips_per_second`; both are
        None if it was not measured.
        """

        def column(name: str, rows: list[dict[str, str]]) -> list[float]:
            return [float(row[name]) for row in rows]

        timed = [row for row in self.rows if float(row["clips_per_second"])]
        measured = [row for row in timed if row.get("waiting")]  # older versions wrote no `waiting`
        seconds_per_clip = [1 / speed for speed in column("clips_per_second", timed)]  # epochs have equally many clips
        weights = [1 / speed for speed in column("clips_per_second", measured)]
        waiting = sum(w * share for w, share in zip(weights, column("waiting", measured), strict=True))
        peaks = column("memory_gib", [row for row in self.rows if row.get("memory_gib")])
        on_gpu = torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0
        speed = round(len(seconds_per_clip) / sum(seconds_per_clip), 2) if seconds_per_clip else None
        free = next((float(row["free_clips_per_second"]) for row in timed if row.get("free_clips_per_second")), None)
        host = [gib for gib in (*(() if on_gpu else peaks), peak_host_gib()) if gib is not None]
        return {
            "training_seconds": round(self.seconds + self.encoding_seconds, 1),
            "encoding_seconds": round(self.encoding_seconds, 1),
            "clips_per_second": speed,
            "waiting": round(waiting / sum(weights), 4) if weights else None,
            "free_clips_per_second": free,
            "headspace": round(free / speed, 2) if free and speed else None,
            "peak_memory_gib": {"host": max(host, default=None), "gpu": max(peaks, default=None) if on_gpu else None},
        }

    def state_dict(self) -> dict:
        return {"encoding_seconds": self.encoding_seconds}

    def load_state_dict(self, state_dict: dict) -> None:
        fields({"encoding_seconds": number(0)})(state_dict, "the checkpoint's EpochTable")
        self.encoding_seconds += state_dict["encoding_seconds"]  # of the run before it was resumed

    def setup(self, trainer: pl.Trainer, task: pl.LightningModule, stage: str) -> None:
        # also for a run with no epochs left
        self.rows = read_epochs(self.path, required=("epoch", "clips_per_second", "seconds"))

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self.rows = [row for row in self.rows if int(row["epoch"]) <= trainer.current_epoch]
        self.lr = trainer.optimizers[0].param_groups[0]["lr"]
        if any(row.get("free_clips_per_second") for row in self.rows):
            self.probe = None  # measured before the run was resumed
        if trainer.is_global_zero:
            for line in header_lines():
                log.info(line)
        self.on_train_epoch_start(trainer, task)  # Lightning does not call it when resuming within an epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self.started, self.meter, self.validated = time.perf_counter(), ThroughputMeter(trainer), False
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(trainer.strategy.root_device)

    def on_train_batch_start(self, trainer: pl.Trainer, task: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        self.lr = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: pl.Trainer, task: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.meter.add(batch)
        if self.probe is not None:
            self.probe.add(batch, is_last=trainer.is_last_batch)

    def on_validation_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.meter.pause()

    def on_validation_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.meter.resume()
            self.validated = True

    def on_train_epoch_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        measured = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if not self.validated:  # the values are those of an earlier epoch
            measured = {name: value for name, value in measured.items() if not name.startswith("val_")}
        waiting, memory = self.meter.waiting, peak_memory_gib(trainer.strategy.root_device)
        row = {
            **{name: f"{measured[name]:.6g}" for name in COLUMNS if name in measured},
            "epoch": str(trainer.current_epoch + 1),
            "step": str(trainer.global_step),
            "lr": f"{self.lr:.4g}",
            "clips_per_second": f"{self.meter.speed:.3f}",
            "memory_gib": "" if memory is None else f"{memory:.3f}",
            "waiting": "" if waiting is None else f"{waiting:.4f}",
            "seconds": f"{time.perf_counter() - self.started:.1f}",
        }
        self.rows.append(row)
        self.num_epochs += 1
        if trainer.is_global_zero:
            self._write()
            log.info(format_row(row, trainer.max_epochs))
            self._advise(waiting, trainer)
        if self.probe is not None:
            self._measure_headspace(trainer, task, waiting)

    def on_exception(self, trainer: pl.Trainer, task: pl.LightningModule, exception: BaseException) -> None:
        is_full = full_disk_error(exception) is not None
        if isinstance(exception, KeyboardInterrupt) or (is_full and self.rows):
            command, reason = (
                train_command(f"resume={self.path.parent}"),
                "the disk is full" if is_full else "interrupted",
            )
            log.info("\n%s; %d epochs are saved. Resume with: %s", reason, len(self.rows), command)

    def _write(self) -> None:
        with replacing(self.path) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows)

    def _measure_headspace(self, trainer: pl.Trainer, task: pl.LightningModule, waiting: float | None) -> None:
        probe, self.probe = self.probe, None  # once
        assert probe is not None
        assert isinstance(task, ClassificationTask)
        free = probe.measure(trainer, task, seconds=self.meter.seconds, waiting=waiting)
        if free is not None:
            self.rows[-1]["free_clips_per_second"] = f"{free:.3f}"
            self._write()
            log.info(headspace_line(free, self.meter.speed))

    def _advise(self, waiting: float | None, trainer: pl.Trainer) -> None:
        # the first epoch includes the start of the data loading workers
        is_typical = self.num_epochs > 1 or trainer.current_epoch + 1 == trainer.max_epochs
        if self.has_advised or not is_typical or self.meter.seconds < MIN_SECONDS_FOR_ADVICE:
            return
        on_cpu = trainer.strategy.root_device.type == "cpu"
        advice = data_bound_advice(
            waiting or 0.0,
            num_workers=getattr(trainer.train_dataloader, "num_workers", 0),
            num_cores=max(num_cores() // trainer.num_devices, 1),
            num_threads=torch.get_num_threads() if on_cpu else 0,
            uses_features=bool(getattr(trainer.datamodule, "cached", None)),  # type: ignore[attr-defined] # set by Lightning
        )
        if advice:
            log.info(advice)
            self.has_advised = True


def peak_memory_gib(device: torch.device) -> float | None:
    """Peak memory of tensors on a GPU since its statistics were reset; otherwise the peak memory of this process."""
    return torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else peak_host_gib()


def header_lines() -> list[str]:
    """The two header lines above the rows of `format_row`."""
    top = "".join(line.rjust(width) for _, line, _, width, _ in SCREEN_COLUMNS)
    bottom = "".join(line.rjust(width) for _, _, line, width, _ in SCREEN_COLUMNS)
    return [f"{'':>8}{top}", f"{'epoch':>8}{bottom}"]


def format_row(row: Mapping[str, str], max_epochs: int | None) -> str:
    """A row for the screen, with a dash for missing values."""
    cells = [
        (number_format.format(float(row[name])) if row.get(name) else "-").rjust(width)
        for name, _, _, width, number_format in SCREEN_COLUMNS
    ]
    return f"{row['epoch']}/{max_epochs}".rjust(8) + "".join(cells)


class ProgressBar(Callback):
    """A temporary bar for each epoch with loss, clips/s and waiting; `Bar` says when one is shown."""

    bar: Bar | None = None
    loss: HostCopy | None = None  # next loss to show, of this or an earlier step

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        if trainer.fit_loop.restarted_mid_epoch:
            self._open(trainer, done=trainer.fit_loop.epoch_loop.batch_progress.current.ready)

    def on_train_epoch_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self._open(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, task: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.meter.add(batch)
        note = None
        assert self.bar is not None  # since the start of the epoch
        if self.bar.due and outputs:
            loss = trainer.callback_metrics.get(
                "train_loss_step", outputs["loss"]
            )  # the latter is scaled for gradient accumulation
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
            self.meter.resume()

    def on_train_epoch_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: pl.Trainer, task: pl.LightningModule, exception: BaseException) -> None:
        self._close()

    def _open(self, trainer: pl.Trainer, *, done: int = 0) -> None:
        self._close()
        name = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        total, shown = int(trainer.num_training_batches), trainer.is_global_zero
        self.bar, self.meter = Bar(name, total=total, unit="batches", shown=shown), ThroughputMeter(trainer)
        self.bar.start(done=done)

    def _close(self) -> None:
        if self.bar:
            self.bar.close()
        self.bar = None
