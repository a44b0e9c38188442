import logging
import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY, train_py
from test_train import rows_of

from stvid.run.stored import read_config
from stvid.training.run_length import num_epochs


def trainer(world_size=1, accumulate_grad_batches=1):
    return SimpleNamespace(world_size=world_size, accumulate_grad_batches=accumulate_grad_batches)


def data(num_videos, clips_per_batch):
    return SimpleNamespace(train=range(num_videos), clips_per_batch=clips_per_batch)


@pytest.mark.parametrize(
    ("min_steps", "num_videos", "options", "expected"),
    [
        (None, 24, {}, 30),
        (150, 24, {}, 150),  # one batch of 16; 8 clips are left over
        (150, 12, {}, 150),  # one batch of 12
        (150, 96, {}, 30),  # 180 steps anyway
        (151, 33, {}, 76),
        (150, 96, {"world_size": 2}, 50),
        (150, 96, {"accumulate_grad_batches": 4}, 75),  # steps of 4 and of 2 batches
    ],
)
def test_a_run_has_at_least_so_many_steps(min_steps, num_videos, options, expected):
    assert num_epochs(30, min_steps, data(num_videos, 16), trainer(**options)) == expected


def test_longer_runs_say_so(caplog):
    with caplog.at_level(logging.INFO):
        num_epochs(30, 30, data(24, 16), trainer())
        assert not caplog.text
        num_epochs(30, 45, data(24, 16), trainer())
    assert (
        "45 epochs instead of 30 (trainer.max_epochs): an epoch has 1 optimizer step, and min_steps is 45"
        in caplog.text
    )


def test_a_run_trains_for_its_steps_and_so_does_its_refit(video_folder, tmp_path):
    run = tmp_path / "run"
    options = ("data.batch_size=4", "trainer.max_epochs=1", "checkpoint=last", "report=false", "logger=none")
    first = ("data=folder", f"data.root={video_folder}", f"hydra.run.dir={run}", *TINY, *options)
    done = train_py(*first, "min_steps=5", "data.val_fraction=0.4", "refit=true")
    assert done.returncode == 0, done.stderr
    rows = rows_of(run / "metrics.csv")
    per_epoch = int(rows[0]["step"])
    epochs = math.ceil(5 / per_epoch)
    assert [int(row["step"]) for row in rows] == [per_epoch * (i + 1) for i in range(epochs)]
    rates = [float(row["lr"]) for row in rows]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] > 0, "the schedule is as long as the run"
    assert read_config(run / "config.yaml").trainer.max_epochs == 1, "what the user said"
    splits = Counter(row["split"] for row in rows_of(run / "manifest.csv"))
    assert (splits["train"] + splits["val"]) // 4 > splits["train"] // 4, "an epoch of the refit has more steps"
    refit = torch.load(run / "checkpoints" / "refit.ckpt", weights_only=True)
    assert 5 <= refit["global_step"] < 5 + (splits["train"] + splits["val"]) // 4
    done = train_py(f"resume={run}", "min_steps=8", "refit=false", "allow_changes=true")
    assert done.returncode == 0, done.stderr
    assert int(rows_of(run / "metrics.csv")[-1]["step"]) >= 8
