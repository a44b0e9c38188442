import logging
from types import SimpleNamespace

import pytest
from conftest import TINY, train_py
from test_train import rows_of

from stvid.run.stored import read_config
from stvid.training.run_length import num_epochs


def trainer(world_size=1, accumulate_grad_batches=1):
    return SimpleNamespace(max_epochs=30, world_size=world_size, accumulate_grad_batches=accumulate_grad_batches)


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
    assert num_epochs(trainer(**options), min_steps, data(num_videos, 16)) == expected


def test_longer_runs_say_so(caplog):
    with caplog.at_level(logging.INFO):
        num_epochs(trainer(), 30, data(24, 16))
        assert not caplog.text
        num_epochs(trainer(), 45, data(24, 16))
    assert (
        "45 epochs instead of 30 (trainer.max_epochs): an epoch has 1 optimizer step, and min_steps is 45"
        in caplog.text
    )


def test_a_run_trains_for_its_steps_and_records_its_epochs(video_folder, tmp_path):
    run = tmp_path / "run"
    options = ("data.batch_size=64", "trainer.max_epochs=1", "min_steps=3", "checkpoint=last", "report=false")
    done = train_py("data=folder", f"data.root={video_folder}", f"hydra.run.dir={run}", *TINY, *options)
    assert done.returncode == 0, done.stderr
    rows = rows_of(run / "metrics.csv")
    assert [(row["epoch"], row["step"]) for row in rows] == [("1", "1"), ("2", "2"), ("3", "3")]
    rates = [float(row["lr"]) for row in rows]
    assert rates[0] > rates[1] > rates[2] > 0, "the schedule is as long as the run"
    assert read_config(run / "config.yaml").trainer.max_epochs == 3
