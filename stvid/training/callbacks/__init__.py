"""Builds the callbacks, plugins and logger arguments of a training run."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from pytorch_lightning.callbacks import Callback, LearningRateMonitor

from stvid.data.datamodule import VideoDataModule
from stvid.errors import InputError
from stvid.training.callbacks.bad_videos import BadVideos
from stvid.training.callbacks.checkpoints import (
    AtomicCheckpoints,
    BestCheckpoint,
    EarlyStop,
    LastCheckpoint,
    TrialPruning,
)
from stvid.training.callbacks.preemption import Preemption
from stvid.training.callbacks.progress import ProgressBar
from stvid.training.ema import WeightEMA
from stvid.training.parallel import SyncedBatchNorm

LOGGER_PACKAGES = {"WandbLogger": "wandb", "MLFlowLogger": "mlflow"}  # optional; the extra has the same name


def build_callbacks(
    data: VideoDataModule,
    *,
    best_checkpoint: Path,
    select: str,
    last_checkpoint: Path,
    bad_videos: Path,
    has_logger: bool,
    save_every: int | None,
    requeue: bool,
    ema: float | None,
    early_stopping: int | None,
    report: Callable[[int, float], bool] | None = None,
) -> list[Callback]:
    """The callbacks of a run, in the order in which Lightning must call them.

    Args:
        data: set up.
        best_checkpoint: file, see `BestCheckpoint`.
        select: see `BestCheckpoint`.
        last_checkpoint: file, see `LastCheckpoint`.
        bad_videos: file, see `BadVideos`.
        has_logger: the run has a logger, which also gets the learning rate.
        save_every: see `LastCheckpoint`.
        requeue: see `Preemption`.
        ema: decay of `WeightEMA`; None: no average.
        early_stopping: patience of `EarlyStop`; None: no early stopping.
        report: see `TrialPruning`; None: the run is not pruned.

    Raises:
        InputError: a value is out of range.
    """
    preemption = Preemption(requeue=requeue)
    return [
        *([] if ema is None else [WeightEMA(decay=ema)]),
        *([LearningRateMonitor(logging_interval="step")] if has_logger else []),
        BadVideos(path=bad_videos, max_bad=data.max_bad_videos, known=data.bad),
        ProgressBar(),
        *([] if early_stopping is None else [EarlyStop(patience=early_stopping)]),
        *([] if report is None else [TrialPruning(report)]),
        preemption,
        BestCheckpoint(best_checkpoint, select=select),
        LastCheckpoint(last_checkpoint, every=save_every, preemption=preemption),
    ]


def build_plugins(sync_batchnorm: bool) -> list:
    """The plugins of Lightning's trainer: atomic checkpoints and, if chosen, synchronised batch norm."""
    return [AtomicCheckpoints(), *([SyncedBatchNorm()] if sync_batchnorm else [])]


def logger_arguments(config: Mapping, run: Path) -> dict[str, str]:
    """Constructor arguments that the configs in `configs/logger` leave out: `save_dir` and, for MLflow, `tracking_uri`.

    `save_dir` is the run folder. `tracking_uri` comes from the config, else from the environment variable
    `MLFLOW_TRACKING_URI`; else it is a database in the run folder, because MLflow 3 does not accept folders.

    Raises:
        InputError: the logger's package is not installed.
    """
    name = str(config["_target_"]).rsplit(".", 1)[-1]
    package = LOGGER_PACKAGES.get(name)
    if package and importlib.util.find_spec(package) is None:
        raise InputError(f"logger={package} needs a package that is not installed: pip install 'stvid[{package}]'")
    if name != "MLFlowLogger":
        return {"save_dir": str(run)}
    tracking_uri = config.get("tracking_uri") or os.environ.get("MLFLOW_TRACKING_URI")
    return {"save_dir": str(run), "tracking_uri": tracking_uri or f"sqlite:///{run.absolute()}/mlflow.db"}


def close_logger(logger: object) -> None:
    """Closes a Weights & Biases run; otherwise the next run of a sweep would continue it."""
    if type(logger).__name__ == "WandbLogger":
        import wandb  # optional

        wandb.finish()
