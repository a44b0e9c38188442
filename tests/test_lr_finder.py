"""The learning-rate range test, on problems whose answer can be worked out."""

import csv

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from stvid.training.lr_finder import HIGHEST, LOWEST, STEPS, find_lr, rates, smoothed, suggestion

TRAINER = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False, "enable_model_summary": False}


class Settings:
    lr, backbone_lr = 0.2, 0.02


class Bowl(pl.LightningModule):
    """Loss `c / 2 * x^2` in each of two parameters: plain gradient descent diverges at rates above 2 / c."""

    def __init__(self, curvature=4.0):
        super().__init__()
        self.curvature, self.optimization, self.seen = curvature, Settings(), []
        self.head, self.backbone = nn.Parameter(torch.ones(10)), nn.Parameter(torch.ones(10))

    def training_step(self, batch, batch_idx):
        loss = self.curvature / 2 * (self.head.pow(2).sum() + self.backbone.pow(2).sum()) / 20
        self.log("train_loss_step", loss.detach(), batch_size=1)
        return loss * 20

    def on_before_optimizer_step(self, optimizer):
        self.seen.append([group["lr"] for group in optimizer.param_groups])

    def configure_optimizers(self):
        groups = [{"params": [self.head], "lr": 0.2}, {"params": [self.backbone], "lr": 0.02}]
        optimizer = torch.optim.SGD(groups)
        schedule = {"scheduler": LambdaLR(optimizer, lambda step: 0.5), "interval": "step"}  # must not have a say
        return {"optimizer": optimizer, "lr_scheduler": schedule}


class Seven(pl.LightningDataModule):
    """Batches for one epoch: fewer than there are steps."""

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.arange(7), batch_size=1)


def run(task, folder, **options):
    return find_lr(
        lambda **changes: pl.Trainer(**{**TRAINER, **options, **changes}),
        task,
        Seven(),
        table=folder / "lr_finder.csv",
        picture=folder / "lr_finder.png",
    )


def rows_of(folder):
    with (folder / "lr_finder.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


@pytest.mark.filterwarnings("ignore")
def test_it_finds_a_rate_below_that_at_which_gradient_descent_diverges(tmp_path):
    task = Bowl()
    found = run(task, tmp_path)
    rows = rows_of(tmp_path)
    assert 1e-3 < found < 2 / task.curvature
    assert 7 < len(rows) < STEPS, "went through several epochs and stopped when the loss exploded"
    assert rows[-1]["lr"] > 2 / task.curvature
    steps = np.arange(len(rows))
    assert [row["lr"] for row in rows] == pytest.approx(LOWEST * (HIGHEST / LOWEST) ** (steps / (STEPS - 1)), rel=1e-5)
    assert (tmp_path / "lr_finder.png").read_bytes().startswith(b"\x89PNG")
    assert found in [pytest.approx(row["lr"], rel=1e-5) for row in rows]


@pytest.mark.filterwarnings("ignore")
def test_groups_keep_the_ratio_of_their_rates_whatever_the_schedule(tmp_path):
    task = Bowl()
    run(task, tmp_path)
    head, backbone = np.array(task.seen).T
    assert head == pytest.approx(np.array(rates(STEPS))[: len(head)])
    assert backbone == pytest.approx(head / 10)


@pytest.mark.filterwarnings("ignore")
def test_a_rate_is_held_for_all_batches_of_an_accumulated_step(tmp_path):
    """The first loss is of unchanged weights: 4 / 2 * mean of 1."""
    run(Bowl(), tmp_path, accumulate_grad_batches=3)
    rows = rows_of(tmp_path)
    assert rows[0]["loss"] == pytest.approx(2.0)
    assert [row["lr"] for row in rows] == pytest.approx(rates(STEPS)[: len(rows)], rel=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_gradients_that_are_not_finite_end_the_test_and_not_the_program(tmp_path):
    class Breaks(Bowl):
        def training_step(self, batch, batch_idx):
            broken = self.trainer.global_step == 40
            return super().training_step(batch, batch_idx) * (float("nan") if broken else 1.0)

    run(Breaks(curvature=0.1), tmp_path)
    assert len(rows_of(tmp_path)) == 40


def test_the_suggestion_is_where_a_known_curve_falls_fastest():
    """A fall from 2 to 1 as a logistic function of log10(lr), steepest at 1e-3; then an explosion."""
    lr = np.array(rates(STEPS))
    fall = 2 - 1 / (1 + np.exp(-4 * (np.log10(lr) + 3)))
    losses = fall + (lr > 0.5) * 20
    assert suggestion(lr, losses) == pytest.approx(1e-3, rel=0.3)
    noise = np.random.default_rng(0).normal(0, 0.02, STEPS)
    assert suggestion(lr, losses + noise) == pytest.approx(1e-3, rel=1.5)


def test_a_loss_that_only_rises_suggests_nothing():
    assert suggestion(rates(20), list(range(1, 21))) is None


@pytest.mark.parametrize("seed", range(5))
def test_a_loss_that_only_scatters_suggests_nothing(seed):
    losses = np.random.default_rng(seed).normal(2.0, 0.3, STEPS)
    assert suggestion(rates(STEPS), losses) is None


def test_smoothing_keeps_a_straight_line_and_a_level_one():
    assert smoothed([3.0] * 30) == pytest.approx([3.0] * 30)
    assert smoothed(np.arange(60.0))[15:45] == pytest.approx(np.arange(60.0)[15:45])
