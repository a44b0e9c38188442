"""Rates at every step, against torch's own schedulers and against formulas."""

from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader

from stvid.training.optim import OptimizerFactory
from stvid.training.schedules import SCHEDULES

SGD = partial(torch.optim.SGD, momentum=0.9)
SETTINGS = {"optimizer": SGD, "lr": 0.4}


def rates(schedulers, optimizer, steps):
    """Of the first group, as Lightning would step the schedulers of every step."""
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for each in schedulers:
            if each["interval"] == "step":
                each["scheduler"].step()
    return found


def rates_of(steps=100, **options):
    optimizer, schedulers = OptimizerFactory(**SETTINGS, **options).configure(nn.Linear(1, 1), steps)
    return rates(schedulers, optimizer, steps)


def rates_of_torch(make, steps=100):
    optimizer = SGD(nn.Linear(1, 1).parameters(), lr=0.4)
    return rates([{"scheduler": make(optimizer), "interval": "step"}], optimizer, steps)


def test_the_rate_warms_up_then_falls_as_a_cosine_to_nothing():
    found = rates_of(warmup=0.1)
    assert found[:10] == pytest.approx([0.04 * (i + 1) for i in range(10)])
    assert found[10] == pytest.approx(0.4)
    assert found[55] == pytest.approx(0.2)
    assert found[-1] < 0.001
    falls = partial(lr_scheduler.CosineAnnealingLR, T_max=90)
    assert found[10:] == pytest.approx(rates_of_torch(falls, 90))


def test_linear_falls_by_the_same_amount_at_every_step():
    found = rates_of(schedule="linear", warmup=0.2)
    assert found == pytest.approx([0.4 * (i + 1) / 20 for i in range(20)] + [0.4 * (80 - i) / 80 for i in range(80)])
    falls = partial(lr_scheduler.LinearLR, start_factor=1.0, end_factor=0.0, total_iters=80)
    assert found[20:] == pytest.approx(rates_of_torch(falls, 80))


@pytest.mark.parametrize("schedule", ["constant", "plateau"])
def test_what_does_not_fall_by_itself_warms_up_as_torchs_linear_lr_and_stays(schedule):
    warms = partial(lr_scheduler.LinearLR, start_factor=1 / 10, total_iters=9)
    assert rates_of(schedule=schedule, warmup=0.1) == pytest.approx(rates_of_torch(warms))
    assert rates_of(schedule=schedule, warmup=0) == pytest.approx([0.4] * 100)


@pytest.mark.parametrize(
    ("options", "places", "gamma"),
    [
        ({"milestones": [0.3, 0.6, 0.95], "gamma": 0.5}, [30, 60, 95], 0.5),
        ({}, [50, 75], 0.1),
    ],
)
def test_multi_step_falls_at_its_milestones_as_torchs_does(options, places, gamma):
    wanted = rates_of_torch(partial(lr_scheduler.MultiStepLR, milestones=places, gamma=gamma))
    assert rates_of(schedule="multi_step", warmup=0, **options) == pytest.approx(wanted)
    assert rates_of(schedule="multi_step", warmup=0.1, **options)[10:] == pytest.approx(wanted[10:])


@pytest.mark.parametrize(("steps", "warmup"), [(100, 0.3), (100, 0.1), (73, 0.25), (7, 0.5), (40, 0.0)])
def test_one_cycle_is_torchs_without_the_momentum(steps, warmup):
    cycle = partial(lr_scheduler.OneCycleLR, max_lr=0.4, total_steps=steps, pct_start=warmup, cycle_momentum=False)
    assert rates_of(steps, schedule="one_cycle", warmup=warmup) == pytest.approx(rates_of_torch(cycle, steps))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_run_of_a_few_steps_has_rates_too(schedule):
    for steps in (1, 2, 3):
        found = rates_of(steps, schedule=schedule, warmup=0.5)
        assert all(0 < rate <= 0.4 for rate in found)


@pytest.mark.parametrize("schedule", [name for name in SCHEDULES if name != "plateau"])
def test_a_rate_follows_from_the_step_and_the_length_of_the_run_alone(schedule):
    """A run of 10 steps is told to train for 40; from there on it is as one that always was to be 40 steps long."""
    optimization = OptimizerFactory(**SETTINGS, schedule=schedule)
    short, schedulers = optimization.configure(nn.Linear(1, 1), 10)
    rates(schedulers, short, 10)
    longer, resumed = optimization.configure(nn.Linear(1, 1), 40)
    resumed[0]["scheduler"].load_state_dict(schedulers[0]["scheduler"].state_dict())
    longer.step()
    resumed[0]["scheduler"].step()
    assert longer.param_groups[0]["lr"] == pytest.approx(rates_of(40, schedule=schedule)[11])


def test_plateau_multiplies_by_gamma_after_more_than_patience_validations_without_a_better_loss():
    options = {"schedule": "plateau", "patience": 1, "gamma": 0.5, "warmup": 0.5}
    optimizer, (rising, falling) = OptimizerFactory(**SETTINGS, **options).configure(nn.Linear(1, 1), 20)
    validations = [(1.0, 1), (0.9, 1), (0.95, 1), (0.91, 0.5), (0.8, 0.5), (0.8, 0.5), (0.8, 0.25), (0.7, 0.25)]
    for number, (loss, fallen) in enumerate(validations):
        rates([rising, falling], optimizer, 2)
        falling["scheduler"].step(loss)
        warmed = min((2 * number + 3) / 10, 1.0)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.4 * warmed * fallen)
    assert falling["monitor"] == "val_loss"


class Plateaued(pl.LightningModule):
    """Learns nothing, with a loss that never gets better; steps its plateau as the task does."""

    def __init__(self):
        super().__init__()
        self.layer, self.seen = nn.Linear(1, 1), []

    def configure_optimizers(self):
        options = {"schedule": "plateau", "patience": 2, "gamma": 0.5, "warmup": 0.3}
        optimizer, schedulers = OptimizerFactory(**SETTINGS, **options).configure(self.layer, 30)
        return [optimizer], schedulers

    def training_step(self, batch, batch_idx):
        self.seen.append(self.optimizers().param_groups[0]["lr"])
        return self.layer(batch).sum()

    def validation_step(self, batch, batch_idx):
        pass

    def on_validation_epoch_end(self):
        for config in self.trainer.lr_scheduler_configs:
            if config.reduce_on_plateau:
                config.scheduler.step(1.0)


def test_a_resumed_run_has_the_rates_of_an_uninterrupted_one_on_a_plateau_too(tmp_path):
    def fit(epochs, resume=None):
        how = {"save_on_train_epoch_end": True, "enable_version_counter": False}
        saving = pl.callbacks.ModelCheckpoint(tmp_path, "last", **how)
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        trainer = pl.Trainer(max_epochs=epochs, callbacks=[saving], num_sanity_val_steps=0, **quiet)
        loader = DataLoader(torch.ones(6, 1), batch_size=2)
        task = Plateaued()
        trainer.fit(task, loader, loader, ckpt_path=resume, weights_only=True)
        return task.seen, saving.best_model_path

    whole, _ = fit(10)
    for end in (3, 4, 6):  # the rate falls after validation 4 and 7
        first, checkpoint = fit(end)
        second, _ = fit(10, resume=checkpoint)
        assert first + second == pytest.approx(whole)
    assert whole[-1] == pytest.approx(0.4 * 0.5**2)
