"""Learning-rate range test (Smith 2017, arXiv:1506.01186): the learning rate at which the loss falls fastest.

Unlike Lightning's `Tuner.lr_find`, it keeps the ratios between parameter groups and supports gradient accumulation.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch.optim import Optimizer

from stvid.distributed import all_reduce
from stvid.files import replacing
from stvid.progress import Bar
from stvid.training.optim import OptimizerFactory
from stvid.training.task import ClassificationTask

log = logging.getLogger("stvid")

LOWEST, HIGHEST, STEPS = 1e-6, 10.0, 100
SMOOTHING = 5.0  # standard deviation of the smoothing, in steps
DIVERGENCE_FACTOR = 4.0  # the test ends when the smoothed loss exceeds this multiple of its minimum


def find_lr(
    make_trainer: Callable[..., pl.Trainer],
    task: ClassificationTask,
    data: pl.LightningDataModule,
    table: Path,
    *,
    picture: Path,
) -> float | None:
    """Trains for 100 steps with learning rates from 1e-6 to 10 and suggests one. Changes the model's weights.

    Writes a table (lr, loss, smoothed) and a plot. If an epoch has fewer than 100 steps, trains for several epochs. The
    test ends early when the smoothed loss exceeds four times its minimum.

    Args:
        make_trainer: builds the run's trainer, with the given arguments changed.
        task: logs `train_loss_step`; its parameter groups keep their ratio to `optimization.lr`.
        data: set up.
        table: file for the CSV table.
        picture: file for the plot, PNG.

    Returns:
        A value for `optimizer.lr`; None if the loss did not fall.
    """
    test = RangeTest(base_lr=task.optimization.lr, rates=range_test_rates(STEPS))
    trainer = make_trainer(
        callbacks=[test],
        logger=False,
        enable_checkpointing=False,
        max_epochs=-1,
        max_steps=STEPS,
        limit_val_batches=0,
        num_sanity_val_steps=0,
    )
    try:
        with Bar("learning rates", total=STEPS, unit="steps", shown=trainer.is_global_zero) as test.bar:
            trainer.fit(task, datamodule=data)
    except Diverged:
        log.info("loss or gradients are not finite at a learning rate of %.1e", test.rates[len(test.losses)])
    suggested = suggest_lr(test.rates, test.losses)
    if trainer.is_global_zero:
        write_table(table, test.rates, test.losses)
        plot(picture, test.rates, test.losses, suggested)
        log.info("written: %s and %s", table, picture.name)
        _log_suggestion(suggested, task.optimization)
    return suggested


class Diverged(Exception):
    """The loss or a gradient is NaN or infinite, so the weights would be NaN after the step."""


class RangeTest(Callback):
    """Sets the learning rate of each step and records its loss, the mean over the batches of an optimizer step.

    Args:
        base_lr: the run's learning rate; every parameter group keeps its ratio to it.
        rates: learning rate of each step, instead of `base_lr`.
    """

    bar: Bar | None = None

    def __init__(self, *, base_lr: float, rates: Sequence[float]):
        self.base_lr, self.rates = base_lr, list(rates)
        self.losses: list[float] = []  # one for each step
        self.batch_losses: list[float] = []  # of the current step

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        groups = trainer.optimizers[0].param_groups
        self.ratios = [group.get("initial_lr", group["lr"]) / self.base_lr for group in groups]
        trainer.strategy.lr_scheduler_configs = []

    def on_train_batch_start(self, trainer: pl.Trainer, task: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        for group, ratio in zip(trainer.optimizers[0].param_groups, self.ratios, strict=True):
            group["lr"] = self.rates[trainer.global_step] * ratio

    def on_before_optimizer_step(self, trainer: pl.Trainer, task: pl.LightningModule, optimizer: Optimizer) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        loss = trainer.callback_metrics["train_loss_step"]
        has_scaler = trainer.precision == "16-mixed"  # the gradient scaler skips steps that overflow
        is_finite = torch.isfinite(loss) and (has_scaler or torch.isfinite(torch.nn.utils.get_total_norm(gradients)))
        if all_reduce(torch.tensor(float(not is_finite), device=task.device), op="max"):
            raise Diverged

    def on_train_batch_end(
        self, trainer: pl.Trainer, task: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if outputs:  # None if no video of the batch could be read
            loss = trainer.callback_metrics["train_loss_step"].to(task.device)
            self.batch_losses.append(float(trainer.strategy.reduce(loss, reduce_op="mean")))
        if trainer.global_step == len(self.losses) or not self.batch_losses:
            return
        self.losses.append(sum(self.batch_losses) / len(self.batch_losses))
        self.batch_losses.clear()
        curve = smooth(self.losses)
        trainer.should_stop = bool(curve[-1] > DIVERGENCE_FACTOR * min(curve))
        if self.bar:
            self.bar.advance(note=f"lr {self.rates[len(self.losses) - 1]:.1e}, loss {self.losses[-1]:.3f}")


def range_test_rates(steps: int) -> list[float]:
    """`LOWEST * (HIGHEST / LOWEST) ** (i / (steps - 1))` for each step i."""
    return [LOWEST * (HIGHEST / LOWEST) ** (i / (steps - 1)) for i in range(steps)]


def smooth(losses: Sequence[float]) -> np.ndarray:
    """Gaussian-weighted means over earlier and later losses. Symmetric, so the curve does not lag behind the rates."""
    steps = np.arange(len(losses))
    distance = np.abs(steps[:, None] - steps)
    weights = np.exp(-0.5 * (distance / SMOOTHING) ** 2) * (distance <= 2 * SMOOTHING)
    return weights @ np.asarray(losses) / weights.sum(1)


def suggest_lr(rates: Sequence[float], losses: Sequence[float]) -> float | None:
    """The learning rate at which the smoothed loss falls fastest as a function of log(rate).

    None if it falls by no more than the standard deviation of the losses around the curve.
    """
    curve = smooth(losses)
    num_falling = int(curve.argmin()) + 1 if len(losses) > 2 else 0  # steps up to the minimum
    noise = np.std(np.asarray(losses)[:num_falling] - curve[:num_falling]) if num_falling else 0.0
    if num_falling < 2 or curve[0] - curve[num_falling - 1] <= noise:
        return None
    slope = np.gradient(curve, np.log(rates[: len(curve)]))
    return float(rates[int(slope[:num_falling].argmin())])


def write_table(path: Path, rates: Sequence[float], losses: Sequence[float]) -> None:
    with replacing(path) as partial, partial.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("lr", "loss", "smoothed"))
        for lr, loss, mean in zip(rates, losses, smooth(losses), strict=False):  # the test may end early
            writer.writerow((f"{lr:.6g}", f"{loss:.6g}", f"{mean:.6g}"))


def plot(path: Path, rates: Sequence[float], losses: Sequence[float], suggested: float | None) -> None:
    """Plots losses, their smoothed curve and the suggested rate over the learning rate."""
    from matplotlib.figure import Figure  # not pyplot, which may need a display

    curve = smooth(losses)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.semilogx(rates[: len(losses)], losses, ".", color="0.7", label="step")
    axes.semilogx(rates[: len(losses)], curve, label="smoothed")
    if suggested is not None:
        axes.axvline(suggested, color="tab:red", linestyle="--", label=f"falls fastest: {suggested:.1e}")
    top = min(max(losses), 2 * curve[0])  # cuts off the divergence, which would flatten the rest
    axes.set(xlabel="optimizer.lr", ylabel="training loss", title="Learning-rate range test")
    axes.set_ylim(min(losses) - 0.05 * (top - min(losses)), top + 0.05 * (top - min(losses)))
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(path) as partial:
        figure.savefig(partial, dpi=120, format="png")


def _log_suggestion(suggested: float | None, optimization: OptimizerFactory) -> None:
    if suggested is None:
        log.warning("no suggestion: in %d steps the loss falls by no more than its noise; see the plot", STEPS)
        return
    overrides = [f"optimizer.lr={suggested:.1e}"]
    if optimization.backbone_lr is not None:
        overrides.append(f"optimizer.backbone_lr={suggested * optimization.backbone_lr / optimization.lr:.1e}")
    log.info("the loss falls fastest at a learning rate of %.1e; train with   %s", suggested, " ".join(overrides))
