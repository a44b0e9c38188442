"""Callbacks and loggers of a training run."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from pytorch_lightning.callbacks import Callback, LearningRateMonitor

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

PACKAGES = {"WandbLogger": "wandb", "MLFlowLogger": "mlflow"}  # that a logger needs, each an extra of its own name


def callbacks(
    run: Path,
    data,
    *,
    has_logger: bool,
    save_every: int | None,
    requeue: bool,
    ema: float | None,
    early_stopping: int | None,
    report: Callable[[int, float], bool] | None = None,
) -> list[Callback]:
    """Of a run, in the order in which they have to hear of a step.

    Args:
        run: its folder; checkpoints go into `checkpoints` there.
        data: a `VideoDataModule`, set up.
        has_logger: somebody to tell the learning rate.
        save_every: see `LastCheckpoint`.
        requeue: see `Preemption`.
        ema: see `WeightEMA`; None: no average.
        early_stopping: see `EarlyStop`; None: every epoch is trained.
        report: see `TrialPruning`; None: nobody asks.

    Raises:
        InputError: a value out of its range.
    """
    folder, preemption = run / "checkpoints", Preemption(requeue=requeue)
    return [
        *([] if ema is None else [WeightEMA(decay=ema)]),
        *([LearningRateMonitor(logging_interval="step")] if has_logger else []),
        BadVideos(path=run / "bad_videos.csv", most=data.max_bad_videos, known=data.bad),
        ProgressBar(),
        *([] if early_stopping is None else [EarlyStop(patience=early_stopping)]),
        *([] if report is None else [TrialPruning(report)]),
        preemption,
        BestCheckpoint(folder),
        LastCheckpoint(folder, every=save_every, preemption=preemption),
    ]


def plugins(sync_batchnorm: bool) -> list:
    """For Lightning's trainer: whole checkpoints, and batch norm over all processes where that is wanted."""
    return [AtomicCheckpoints(), *([SyncedBatchNorm()] if sync_batchnorm else [])]


def logger_arguments(config: Mapping, run: Path) -> dict[str, str]:
    """What a choice of `configs/logger` leaves open: `save_dir`, the run folder; with MLflow also `tracking_uri`.

    That one is the config's, else the environment's `MLFLOW_TRACKING_URI`, else a data base in the run folder, since
    MLflow 3 refuses plain folders.

    Raises:
        InputError: the logger's package is not installed.
    """
    name = str(config["_target_"]).rsplit(".", 1)[-1]
    package = PACKAGES.get(name)
    if package and importlib.util.find_spec(package) is None:
        raise InputError(f"logger={package} needs a package that is not installed: pip install 'stvid[{package}]'")
    if name != "MLFlowLogger":
        return {"save_dir": str(run)}
    known = config.get("tracking_uri") or os.environ.get("MLFLOW_TRACKING_URI")
    return {"save_dir": str(run), "tracking_uri": known or f"sqlite:///{run.absolute()}/mlflow.db"}


def close_logger(logger: object) -> None:
    """Ends what a logger has begun: Weights & Biases would take the next run of a sweep for the same one."""
    if type(logger).__name__ == "WandbLogger":
        import wandb  # an extra

        wandb.finish()
