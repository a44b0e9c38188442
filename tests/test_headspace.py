"""The speed of a training without its data, exact with a simulated clock. Measuring it changes nothing."""

import json
import logging
import random
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from conftest import TINY, train_py
from test_resume import assert_equal_runs
from test_task import Normed, batch, new_task
from test_train import rows_of
from torch import nn
from torch.utils.data import Dataset

from stvid.data.timed_loader import TimedLoader
from stvid.training.callbacks import headspace
from stvid.training.callbacks.headspace import HeadspaceProbe, num_steps
from stvid.training.callbacks.progress import EpochTable
from stvid.training.mixing import Mixing
from stvid.training.optim import OptimizerFactory

LOGGER = "stvid.training.callbacks"
CLOCK = [0.0]


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only while something is read or computed."""
    CLOCK[0] = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: CLOCK[0])


class Batches(Dataset):
    """Batches of 4 clips; reading one takes `seconds`."""

    def __init__(self, count, *, seconds=0.0, frames=(2,)):
        self.count, self.seconds, self.frames = count, seconds, frames

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        CLOCK[0] += self.seconds
        item = batch(index, size=4)
        clips = item["clips"].repeat(1, self.frames[index % len(self.frames)] // 2, 1, 1, 1)
        return {**item, "clips": clips, "failed": []}


class Timed(Normed):
    """A forward pass takes `seconds`."""

    def __init__(self, seconds=0.0):
        super().__init__()
        self.seconds, self.dropout = seconds, nn.Dropout(0.5)

    def forward(self, clips_BCTHW, lengths_B=None):
        CLOCK[0] += self.seconds
        assert self.training
        return super().forward(self.dropout(clips_BCTHW), lengths_B)


def fit(path, batches, model, *, epochs=1, probes=True, **options):
    """Trains; returns the table, the task and the trainer."""
    momentum = OptimizerFactory(optimizer=lambda p, lr: torch.optim.AdamW(p, lr), lr=0.1, schedule="cosine")
    task = new_task(model, optimization=momentum, mixing=Mixing(mixup=0.8, cutmix=1.0))
    table = EpochTable(path=path / "metrics.csv", headspace=probes)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    usual = {"accelerator": "cpu", "callbacks": [table], "gradient_clip_val": 1.0, **quiet}
    trainer = pl.Trainer(max_epochs=epochs, **usual, **options)
    trainer.fit(task, TimedLoader(batches, batch_size=None))
    return table, task, trainer


@pytest.mark.parametrize(
    ("reading", "computing", "line"),
    [
        (0.5, 0.125, "headspace: 5.0x (32.0 clips/s if data were free, 6.4 measured)"),
        (0.0, 0.125, "headspace: 1.0x (32.0 clips/s if data were free, 32.0 measured)"),
        (0.125, 0.125, "headspace: 2.0x (32.0 clips/s if data were free, 16.0 measured)"),
    ],
)
def test_headspace_is_the_time_of_a_step_with_data_divided_by_that_without(
    clock, tmp_path, caplog, reading, computing, line
):
    """Of 4 clips each; a training of 100 batches takes 12.5 s or more."""
    caplog.set_level(logging.INFO, LOGGER)
    table, _, _ = fit(tmp_path, Batches(100, seconds=reading), Timed(computing), epochs=2)
    assert [record.message for record in caplog.records].count(line) == 1
    assert [row["free_clips_per_second"] for row in rows_of(tmp_path / "metrics.csv")] == ["32.000", ""]
    summary = table.summary()
    assert summary["free_clips_per_second"] == 32.0
    assert summary["headspace"] == pytest.approx((reading + computing) / computing, abs=0.01)
    assert summary["training_seconds"] == pytest.approx(2 * 100 * (reading + computing), abs=0.1)


@pytest.mark.parametrize(
    ("num_batches", "seconds", "waiting", "expected"),
    [
        (1000, 1000.0, 0.0, 3),  # 5 s are 5 steps of 1 s
        (100_000, 10_000.0, 0.5, 8),  # no more are needed
        (50, 50.0, 0.0, 0),  # 5 % of the epoch are two steps
        (50, 50.0, 0.9, 8),  # it waited, so steps are short
        (50, 50.0, None, 0),
        (60, 60.0, None, 1),
        (1000, 9.9, 0.0, 0),
        (20, 1000.0, 0.0, 0),  # a step takes 50 s
        (20, 1000.0, 1.0, 8),
        (0, 100.0, None, 0),
    ],
)
def test_the_measurement_takes_at_most_5_percent_of_the_epoch_and_5_seconds(num_batches, seconds, waiting, expected):
    assert num_steps(num_batches, seconds, waiting) == expected


def test_a_short_training_is_not_measured(clock, tmp_path, caplog):
    caplog.set_level(logging.INFO, LOGGER)
    table, _, _ = fit(tmp_path, Batches(70), Timed(0.125))
    assert "headspace" not in caplog.text
    assert (table.summary()["headspace"], table.summary()["free_clips_per_second"]) == (None, None)


@pytest.fixture
def measured(monkeypatch):
    """Every training is measured, however short; the speeds."""
    speeds, free_speed = [], headspace.free_speed
    monkeypatch.setattr(headspace, "num_steps", lambda *arguments: 4)
    monkeypatch.setattr(headspace, "free_speed", lambda *a, **k: speeds.append(free_speed(*a, **k)) or speeds[-1])
    return speeds


def state_of(task, trainer):
    """Everything that training changes, and the random generators."""
    generators = torch.get_rng_state(), np.random.get_state()[1], random.getstate()
    gradients = [parameter.grad for parameter in task.parameters()]
    return task.state_dict(), trainer.optimizers[0].state_dict(), gradients, generators, trainer.callback_metrics


def assert_same(value, other):
    if isinstance(value, dict):
        assert value.keys() == other.keys()
        value, other = list(value.values()), list(other.values())
    if isinstance(value, list | tuple):
        for a, b in zip(value, other, strict=True):
            assert_same(a, b)
    elif isinstance(value, torch.Tensor):
        assert torch.equal(value, other)
    else:
        assert np.array_equal(value, other)


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 3}, {"precision": "bf16-mixed"}], ids=str)
@pytest.mark.parametrize("epochs", [1, 2])
def test_the_measurement_changes_nothing(tmp_path, measured, options, epochs):
    states = []
    for probes in (False, True):
        pl.seed_everything(3, verbose=False)
        _, task, trainer = fit(tmp_path, Batches(7), Timed(), epochs=epochs, probes=probes, **options)
        states.append(state_of(task, trainer))
        assert len(measured) == probes
    assert_same(*states)
    assert measured[0] > 0


@pytest.fixture(scope="module")
def unmeasured_run(video_folder, tmp_path_factory):
    run = tmp_path_factory.mktemp("unmeasured") / "run"
    assert train(video_folder, run, "headspace=false").returncode == 0
    return run


def train(video_folder, run, *overrides):
    options = ("trainer.max_epochs=3", "ema=0.9", "mixing=mixup", "model=cnn_lstm", *TINY, *overrides)
    return train_py("data=folder", f"data.root={video_folder}", f"hydra.run.dir={run}", *options)


def test_a_run_is_bit_for_bit_that_without_the_measurement(video_folder, unmeasured_run, tmp_path, measured):
    done = train(video_folder, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert len(measured) == 1
    assert_equal_runs(tmp_path / "run", unmeasured_run)
    optimizers = [
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["optimizer_states"]
        for run in (tmp_path / "run", unmeasured_run)
    ]
    assert_same(*optimizers)
    assert f"({measured[0]:.1f} clips/s if data were free, " in done.stdout
    result, other = (json.loads((run / "result.json").read_text()) for run in (tmp_path / "run", unmeasured_run))
    assert result["free_clips_per_second"] == pytest.approx(measured[0], abs=0.001)
    assert result["headspace"] == pytest.approx(measured[0] / result["clips_per_second"], abs=0.01)
    assert (other["free_clips_per_second"], other["headspace"]) == (None, None)
    assert "clips/s if data were free" in (tmp_path / "run" / "report.html").read_text()
    assert "clips/s if data were free" not in (unmeasured_run / "report.html").read_text()


def test_a_resumed_run_keeps_the_value_and_does_not_measure_again(tmp_path):
    table = EpochTable(path=tmp_path / "metrics.csv", headspace=True)
    row = {"epoch": "1", "clips_per_second": "10", "seconds": "2", "waiting": "0.5", "free_clips_per_second": "20"}
    table.rows, table.on_train_epoch_start = [row], lambda *arguments: None
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.1}])
    table.on_train_start(SimpleNamespace(current_epoch=1, optimizers=[optimizer], is_global_zero=False), None)
    assert table.probe is None
    assert table.summary()["headspace"] == 2.0


class NoCopy(Timed):
    def __deepcopy__(self, memo):
        raise TypeError("cannot pickle a lock")


def out_of_memory(*arguments, **options):
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_model_that_cannot_be_copied_trains_on(tmp_path, measured, caplog):
    table, _, trainer = fit(tmp_path, Batches(3), NoCopy(), epochs=2)
    assert trainer.current_epoch == 2
    assert "a step of a copy of the model failed; training continues" in caplog.text
    assert "cannot pickle a lock" in caplog.text
    assert table.summary()["headspace"] is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda patch: patch.setattr(headspace, "free_bytes", lambda device: 100), "does not fit into memory"),
        (lambda patch: patch.setattr(headspace, "free_speed", out_of_memory), "does not fit into memory"),
        (lambda patch: patch.setattr(Timed, "_compiled_call_impl", nn.Module.__call__), "the model is compiled"),
        (lambda patch: patch.setattr(pl.Trainer, "world_size", 2), "the training has several processes"),
    ],
)
def test_why_it_is_not_measured_is_told(tmp_path, monkeypatch, measured, caplog, change, reason):
    caplog.set_level(logging.INFO, LOGGER)
    _, task, trainer = fit(tmp_path, Batches(3), Timed(), probes=False)
    probe = HeadspaceProbe()
    probe.add(Batches(1)[0], is_last=True)
    change(monkeypatch)
    assert probe.measure(trainer, task, seconds=100.0, waiting=0.5) is None
    assert f"headspace: not measured, {reason}" in caplog.text.replace("a copy of the model does", "does")
    assert not measured


def test_clips_of_different_lengths_are_not_measured_by_those_of_one_batch(tmp_path, measured, caplog):
    caplog.set_level(logging.INFO, LOGGER)
    fit(tmp_path, Batches(4, frames=(2, 4)), Timed())
    assert "headspace: not measured, the clips have different lengths" in caplog.text
    assert not measured
