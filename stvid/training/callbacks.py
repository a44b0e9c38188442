"""What watches over a run, and where its checkpoints go."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pytorch_lightning.callbacks import Callback, LearningRateMonitor

from stvid.training.bad_videos import BadVideos
from stvid.training.checkpoints import AtomicCheckpoints, BestCheckpoint, EarlyStop, LastCheckpoint
from stvid.training.ema import WeightEMA
from stvid.training.epochs import ProgressBar
from stvid.training.preemption import Preemption
from stvid.training.processes import SyncedBatchNorm
from stvid.training.pruning import TrialPruning


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
        BadVideos(path=run / "bad_videos.csv", most=data.most_bad, known=data.bad),
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
