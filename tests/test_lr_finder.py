"""The learning-rate range test, on problems with a known answer."""

import csv

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from stvid.training.lr_finder import HIGHEST, LOWEST, STEPS, find_lr, range_test_rates, smooth, suggest_lr

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
        schedule = {"scheduler": LambdaLR(optimizer, lambda step: 0.5), "interval": "step"}  # has no effect in the test
        return {"optimizer": optimizer, "lr_scheduler": schedule}


class SevenBatches(pl.LightningDataModule):
    """Seven batches per epoch, fewer than the steps of the test."""

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.arange(7), batch_size=1)


def run(task, folder, **options):
    return find_lr(
        lambda **changes: pl.Trainer(**{**TRAINER, **options, **changes}),
        task,
        SevenBatches(),
        table=folder / "lr_finder.csv",
        picture=folder / "lr_finder.png",
    )


def rows_of(folder):
    with (folder / "lr_finder.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


@pytest.mark.filterwarnings("ignore")
def test_the_suggested_rate_is_below_the_rate_at_which_gradient_descent_diverges(tmp_path):
    task = Bowl()
    suggested = run(task, tmp_path)
    rows = rows_of(tmp_path)
    assert 1e-3 < suggested < 2 / task.curvature
    assert 7 < len(rows) < STEPS, "went through several epochs and stopped when the loss exploded"
    assert rows[-1]["lr"] > 2 / task.curvature
    steps = np.arange(len(rows))
    assert [row["lr"] for row in rows] == pytest.approx(LOWEST * (HIGHEST / LOWEST) ** (steps / (STEPS - 1)), rel=1e-5)
    assert (tmp_path / "lr_finder.png").read_bytes().startswith(b"\x89PNG")
    assert suggested in [pytest.approx(row["lr"], rel=1e-5) for row in rows]


@pytest.mark.filterwarnings("ignore")
def test_parameter_groups_keep_their_ratio_with_any_schedule(tmp_path):
    task = Bowl()
    run(task, tmp_path)
    head, backbone = np.array(task.seen).T
    assert head == pytest.approx(np.array(range_test_rates(STEPS))[: len(head)])
    assert backbone == pytest.approx(head / 10)


@pytest.mark.filterwarnings("ignore")
def test_all_batches_of_an_accumulated_step_have_the_same_rate(tmp_path):
    """The first loss is that of the initial weights: 4 / 2 * mean of 1."""
    run(Bowl(), tmp_path, accumulate_grad_batches=3)
    rows = rows_of(tmp_path)
    assert rows[0]["loss"] == pytest.approx(2.0)
    assert [row["lr"] for row in rows] == pytest.approx(range_test_rates(STEPS)[: len(rows)], rel=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_nan_gradients_end_the_test_without_an_error(tmp_path):
    class Breaks(Bowl):
        def training_step(self, batch, batch_idx):
            broken = self.trainer.global_step == 40
            return super().training_step(batch, batch_idx) * (float("nan") if broken else 1.0)

    run(Breaks(curvature=0.1), tmp_path)
    assert len(rows_of(tmp_path)) == 40


def test_the_suggestion_is_the_steepest_point_of_a_known_curve():
    """A fall from 2 to 1 as a logistic function of log10(lr), steepest at 1e-3; then it diverges."""
    lr = np.array(range_test_rates(STEPS))
    fall = 2 - 1 / (1 + np.exp(-4 * (np.log10(lr) + 3)))
    losses = fall + (lr > 0.5) * 20
    assert suggest_lr(lr, losses) == pytest.approx(1e-3, rel=0.3)
    noise = np.random.default_rng(0).normal(0, 0.02, STEPS)
    assert suggest_lr(lr, losses + noise) == pytest.approx(1e-3, rel=1.5)


def test_a_rising_loss_gives_no_suggestion():
    assert suggest_lr(range_test_rates(20), list(range(1, 21))) is None


@pytest.mark.parametrize("seed", range(5))
def test_noise_gives_no_suggestion(seed):
    losses = np.random.default_rng(seed).normal(2.0, 0.3, STEPS)
    assert suggest_lr(range_test_rates(STEPS), losses) is None


def test_smoothing_keeps_straight_lines():
    assert smooth([3.0] * 30) == pytest.approx([3.0] * 30)
    assert smooth(np.arange(60.0))[15:45] == pytest.approx(np.arange(60.0)[15:45])
