"""Learning-rate range test: at which rate does the loss fall fastest, and at which does training break?

Smith 2017, arXiv:1506.01186. Lightning's own (`Tuner.lr_find`) gives all parameter groups one rate, where this keeps
their ratios, and it takes no notice of gradient accumulation.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from stvid.distributed import all_reduce
from stvid.files import replacing
from stvid.progress import Bar

log = logging.getLogger("stvid")

LOWEST, HIGHEST, STEPS = 1e-6, 10.0, 100
WIDTH = 5.0  # of the smoothing, in steps
DIVERGED = 4.0  # times the best smoothed loss


def find_lr(
    make_trainer: Callable[..., pl.Trainer],
    task: pl.LightningModule,
    data: pl.LightningDataModule,
    *,
    table: Path,
    picture: Path,
) -> float | None:
    """Trains for 100 steps at rates from 1e-6 to 10 and says at which the loss fell fastest. Spoils the model.

    Writes a table (lr, loss, smoothed) and a picture. Where there are fewer batches than steps, several
    epochs are gone through; a loss of more than four times the best one ends the test.

    Args:
        make_trainer: builds a trainer like the run's, with some arguments changed.
        task: with `optimization.lr`, to which the rates of its parameter groups are in proportion; it logs
            `train_loss_step`.
        data: set up.
        table: file for the CSV table.
        picture: file for the PNG picture.

    Returns:
        The rate for `optimizer.lr`; None where the loss did not fall.
    """
    test = RangeTest(lr=task.optimization.lr, rates=rates(STEPS))
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
        log.info("at a learning rate of %.1e gradients are no longer finite", test.rates[len(test.losses)])
    found = suggestion(test.rates, test.losses)
    if trainer.is_global_zero:
        write(table, test.rates, test.losses)
        draw(picture, test.rates, test.losses, found)
        log.info("written: %s and %s", table, picture.name)
        _tell(found, task.optimization)
    return found


class Diverged(Exception):
    """Gradients are not finite: the step would spoil the weights, and no further one could tell anything."""


class RangeTest(Callback):
    """Sets the rates, step by step, and takes note of the losses: the mean over an optimizer step's batches.

    Args:
        lr: what the optimizer's own rates are in proportion to.
        rates: of each step, in the place of `lr`.
    """

    bar: Bar | None = None

    def __init__(self, *, lr: float, rates: Sequence[float]):
        self.lr, self.rates = lr, list(rates)
        self.losses: list[float] = []
        self.of_this_step: list[float] = []

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        groups = trainer.optimizers[0].param_groups
        self.shares = [group.get("initial_lr", group["lr"]) / self.lr for group in groups]
        trainer.strategy.lr_scheduler_configs = []

    def on_train_batch_start(self, trainer: pl.Trainer, task: pl.LightningModule, batch, batch_idx) -> None:
        for group, share in zip(trainer.optimizers[0].param_groups, self.shares, strict=True):
            group["lr"] = self.rates[trainer.global_step] * share

    def on_before_optimizer_step(self, trainer: pl.Trainer, task: pl.LightningModule, optimizer) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        loss = trainer.callback_metrics["train_loss_step"]
        scaled = trainer.precision == "16-mixed"  # there the scaler leaves out steps that overflow
        fine = torch.isfinite(loss) and (scaled or torch.isfinite(torch.nn.utils.get_total_norm(gradients)))
        if all_reduce(torch.tensor(float(not fine), device=task.device), take="max"):
            raise Diverged

    def on_train_batch_end(self, trainer: pl.Trainer, task: pl.LightningModule, outputs, batch, batch_idx) -> None:
        if outputs:  # none of a batch in which nothing could be read
            loss = trainer.callback_metrics["train_loss_step"].to(task.device)
            self.of_this_step.append(float(trainer.strategy.reduce(loss, reduce_op="mean")))
        if trainer.global_step == len(self.losses) or not self.of_this_step:
            return
        self.losses.append(sum(self.of_this_step) / len(self.of_this_step))
        self.of_this_step.clear()
        curve = smoothed(self.losses)
        trainer.should_stop = bool(curve[-1] > DIVERGED * min(curve))
        if self.bar:
            self.bar.advance(note=f"lr {self.rates[len(self.losses) - 1]:.1e}, loss {self.losses[-1]:.3f}")


def rates(steps: int) -> list[float]:
    """`LOWEST * (HIGHEST / LOWEST) ** (i / (steps - 1))` for each step i."""
    return [LOWEST * (HIGHEST / LOWEST) ** (i / (steps - 1)) for i in range(steps)]


def smoothed(losses: Sequence[float]) -> np.ndarray:
    """Means over the neighbours of each, earlier and later alike, so that the curve does not lag behind the rates."""
    steps = np.arange(len(losses))
    distance = np.abs(steps[:, None] - steps)
    weights = np.exp(-0.5 * (distance / WIDTH) ** 2) * (distance <= 2 * WIDTH)
    return weights @ np.asarray(losses) / weights.sum(1)


def suggestion(rates: Sequence[float], losses: Sequence[float]) -> float | None:
    """The rate at which the smoothed loss falls fastest, over the logarithm of the rate.

    None where it does not fall, or by no more than the losses scatter around the curve: then it is chance.
    """
    curve = smoothed(losses)
    best = int(curve.argmin()) + 1 if len(losses) > 2 else 0  # steps until the lowest point
    if best < 2 or curve[0] - curve[best - 1] <= np.std(np.asarray(losses)[:best] - curve[:best]):
        return None
    slope = np.gradient(curve, np.log(rates[: len(curve)]))
    return float(rates[int(slope[:best].argmin())])


def write(path: Path, rates: Sequence[float], losses: Sequence[float]) -> None:
    with replacing(path) as partial, partial.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("lr", "loss", "smoothed"))
        for lr, loss, mean in zip(rates, losses, smoothed(losses), strict=False):  # a test may end early
            writer.writerow((f"{lr:.6g}", f"{loss:.6g}", f"{mean:.6g}"))


def draw(path: Path, rates: Sequence[float], losses: Sequence[float], found: float | None) -> None:
    """The losses over the rates, their smoothed curve, and the suggestion."""
    from matplotlib.figure import Figure  # without pyplot, so that no window system is asked for

    curve = smoothed(losses)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.semilogx(rates[: len(losses)], losses, ".", color="0.7", label="of a step")
    axes.semilogx(rates[: len(losses)], curve, label="smoothed")
    if found is not None:
        axes.axvline(found, color="tab:red", linestyle="--", label=f"falls fastest: {found:.1e}")
    top = min(max(losses), 2 * curve[0])  # what comes after the best is seen to rise, not how far
    axes.set(xlabel="optimizer.lr", ylabel="training loss", title="Learning-rate range test")
    axes.set_ylim(min(losses) - 0.05 * (top - min(losses)), top + 0.05 * (top - min(losses)))
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(path) as partial:
        figure.savefig(partial, dpi=120, format="png")


def _tell(found: float | None, optimization) -> None:
    if found is None:
        log.warning("no learning rate makes the loss fall by more than it scatters in %d steps; see the picture", STEPS)
        return
    words = [f"optimizer.lr={found:.1e}"]
    if optimization.backbone_lr is not None:
        words.append(f"optimizer.backbone_lr={found * optimization.backbone_lr / optimization.lr:.1e}")
    log.info("the loss falls fastest at a learning rate of %.1e; train with   %s", found, " ".join(words))
