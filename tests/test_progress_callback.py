"""The table of epochs and the progress bar, with a trivial model."""

import contextlib
import csv
import logging
import math
import os
import re
import sys
import threading
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from test_progress import screen
from torch.utils.data import DataLoader

from stvid import progress
from stvid.data.timed_loader import TimedLoader
from stvid.errors import InputError
from stvid.training.callbacks import progress as progress_callback
from stvid.training.callbacks.progress import COLUMNS, EpochTable, ProgressBar, format_row, header_lines, read_epochs

OPTIONS = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}
pytestmark = pytest.mark.filterwarnings("ignore")


class OneWeight(pl.LightningModule):
    """A model with one weight."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch, batch_idx):
        logged = {"train_loss": 1.25, "train_clip_accuracy": 0.5}
        self.log_dict(logged, on_step=False, on_epoch=True, batch_size=len(batch["labels"]))
        return self.weight**2

    def validation_step(self, batch, batch_idx):
        self.log_dict({"val_loss": 2.0, "val_clip_accuracy": 0.25, "val_video_accuracy": 0.75}, batch_size=1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader(kind=TimedLoader, size=12):
    return kind([{"labels": i} for i in range(size)], batch_size=2)


def fit(path, *, epochs=2, train=None, task=None, **options):
    trainer = pl.Trainer(
        max_epochs=epochs, callbacks=[ProgressBar(), table := EpochTable(path=path)], **OPTIONS | options
    )
    trainer.fit(task or OneWeight(), train or loader(), loader(DataLoader, 4))
    return table


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_each_epoch_writes_a_row_with_all_columns(tmp_path):
    fit(tmp_path / "metrics.csv")
    rows = rows_of(tmp_path / "metrics.csv")
    assert tuple(rows[0]) == COLUMNS
    assert [(row["epoch"], row["step"], row["lr"]) for row in rows] == [("1", "6", "0.1"), ("2", "12", "0.1")]
    assert {(row["train_loss"], row["val_video_accuracy"]) for row in rows} == {("1.25", "0.75")}
    for row in rows:
        assert 0 <= float(row["waiting"]) <= 1
        assert float(row["memory_gib"]) > 0.05, "a process with torch in it"


def test_the_screen_has_one_header_and_aligned_lines_that_say_clip_or_video(tmp_path, caplog):
    caplog.set_level(logging.INFO, "stvid.training.callbacks.progress")
    fit(tmp_path / "metrics.csv")
    lines = [record.message for record in caplog.records if record.name == "stvid.training.callbacks.progress"][:4]
    assert lines[:2] == header_lines()
    assert len({len(line) for line in lines}) == 1
    assert lines[2].split()[:6] == ["1/2", "1.250", "0.500", "2.000", "0.250", "0.750"]
    assert header_lines()[1].count("accuracy") == 3
    assert [header_lines()[0].count(word) for word in ("train clip", "val clip", "val video")] == [1, 1, 1]


def test_a_missing_value_is_a_dash():
    assert format_row({"epoch": 3, "train_loss": "0.5"}, 16).split() == ["3/16", "0.500", *"-" * 7]


def test_a_loader_that_does_not_measure_leaves_the_cell_empty(tmp_path):
    table = fit(tmp_path / "metrics.csv", train=loader(DataLoader))
    assert {row["waiting"] for row in rows_of(tmp_path / "metrics.csv")} == {""}
    assert table.summary()["waiting"] is None


def test_validation_within_an_epoch_is_not_training_time(tmp_path, now):
    """With a simulated clock, time passes only in validation."""

    class Slow(OneWeight):
        def validation_step(self, batch, batch_idx):
            now[0] += 100.0
            super().validation_step(batch, batch_idx)

    table = fit(tmp_path / "m.csv", epochs=1, task=Slow(), val_check_interval=3)
    assert table.meter.seconds == 0.0
    assert table.seconds == 400.0


def test_a_table_of_an_older_version_is_continued(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,step,lr,train_loss,clips_per_second,seconds\n1,6,0.1,1.5,20.0,3.0\n2,9,0.1,1.4,10.0,3.0\n")
    table = EpochTable(path=path)
    table.setup(trainer_at(epoch=1), None, "fit")
    table.on_train_start(trainer_at(epoch=1), None)
    assert [row["epoch"] for row in table.rows] == ["1"]
    table._write()
    assert rows_of(path)[0]["train_loss"] == "1.5"
    assert table.summary()["clips_per_second"] == 20.0


def trainer_at(*, epoch, waited=0.0, **changes):
    """A stand-in for the trainer in an epoch, with the attributes that the table reads."""
    attributes = {
        "current_epoch": epoch,
        "max_epochs": 3,
        "global_step": 6,
        "world_size": 1,
        "num_devices": 1,
        "is_global_zero": True,
        "strategy": SimpleNamespace(root_device=torch.device("cpu")),
        "train_dataloader": SimpleNamespace(waited=waited, num_workers=1),
        "datamodule": None,
        "callback_metrics": {},
        "optimizers": [SimpleNamespace(param_groups=[{"lr": 0.1}])],
    }
    return SimpleNamespace(**attributes | changes)


def run_epoch(table, trainer, now, *, seconds, waits, starts=True):
    """One epoch of two batches of three clips, with a simulated clock."""
    if starts:
        table.on_train_epoch_start(trainer, None)
    for _ in range(2):
        table.on_train_batch_start(trainer, None, None, 0)
        now[0] += seconds / 2
        trainer.train_dataloader.waited += waits / 2
        table.on_train_batch_end(trainer, None, None, {"labels": [0, 0, 0]}, 0)
    table.on_train_epoch_end(trainer, None)


@pytest.fixture
def now(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress_callback.time, "perf_counter", lambda: now[0])
    return now


def test_an_epoch_resumed_in_the_middle_has_the_speed_of_its_remaining_part(tmp_path, now):
    """Lightning does not call on_train_epoch_start for it; earlier waiting does not count."""
    table, trainer = EpochTable(path=tmp_path / "m.csv"), trainer_at(epoch=1, waited=50.0)
    now[0] = 1000.0
    table.on_train_start(trainer, None)
    run_epoch(table, trainer, now, seconds=10.0, waits=4.0, starts=False)
    (row,) = rows_of(tmp_path / "m.csv")
    assert (row["epoch"], float(row["clips_per_second"]), float(row["waiting"])) == ("2", 0.6, 0.4)


def test_the_summary_weights_epochs_by_their_time(tmp_path, now):
    table, trainer = EpochTable(path=tmp_path / "m.csv"), trainer_at(epoch=0)
    table.on_train_start(trainer, None)
    run_epoch(table, trainer, now, seconds=30.0, waits=21.0)
    run_epoch(table, trainer, now, seconds=10.0, waits=1.0)
    summary = table.summary()
    assert summary["clips_per_second"] == pytest.approx(12 / 40, abs=0.01)
    assert summary["waiting"] == pytest.approx(22 / 40, abs=0.001)
    assert summary["training_seconds"] == 40.0
    assert summary["peak_memory_gib"]["gpu"] is None
    assert summary["peak_memory_gib"]["host"] > 0.05


@pytest.fixture
def num_advices(caplog):
    """A function that returns how often advice was logged so far."""
    caplog.set_level(logging.INFO, "stvid.training.callbacks.progress")
    return lambda: sum("data-bound" in record.message for record in caplog.records)


def test_advice_is_logged_once_and_not_after_the_first_epoch(tmp_path, now, num_advices):
    table = EpochTable(path=tmp_path / "m.csv")
    table.on_train_start(trainer_at(epoch=0), None)
    counts = []
    for epoch in range(3):
        run_epoch(table, trainer_at(epoch=epoch), now, seconds=10.0, waits=6.0)
        counts.append(num_advices())
    assert counts == [0, 1, 1]


@pytest.mark.parametrize(("seconds", "times"), [(10.0, 1), (2.0, 0)])
def test_advice_is_logged_after_the_only_epoch_if_it_is_long(tmp_path, now, num_advices, seconds, times):
    table = EpochTable(path=tmp_path / "m.csv")
    table.on_train_start(trainer_at(epoch=0), None)
    run_epoch(table, trainer_at(epoch=0, max_epochs=1), now, seconds=seconds, waits=0.6 * seconds)
    assert num_advices() == times


@contextlib.contextmanager
def terminal(monkeypatch):
    """Makes stdout and stderr a terminal of 100 columns; the yielded list contains the output after the block."""
    master, slave = pytest.importorskip("pty").openpty()
    for name, value in {"COLUMNS": "100", "LINES": "40", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    written, parts = [], []

    def read():
        with contextlib.suppress(OSError):  # raised on Linux when the other end is closed
            while part := os.read(master, 65536):
                parts.append(part)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(slave, "w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        patch.setattr(sys, "stderr", stream)
        yield written
    reader.join()
    os.close(master)
    written.append(b"".join(parts).decode())


def test_on_a_terminal_the_bar_is_temporary_and_the_table_remains(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(progress, "REDRAW_SECONDS", 0.0)
    caplog.set_level(logging.INFO, "stvid.training.callbacks.progress")
    with terminal(monkeypatch) as written, monkeypatch.context() as patch:
        patch.setattr(logging.getLogger(), "handlers", [logging.StreamHandler(sys.stdout)])
        fit(tmp_path / "metrics.csv")
    (text,) = written
    displayed = re.sub(r"\x1b\[[\d;?]*\w", "", text)
    assert re.search(r"epoch 2/2.* 6/6.* batches loss 0\.000, \d+ clips/s, waiting \d+%", displayed)
    left = [line.split()[0] for line in screen(text) if line]
    assert [word for word in left if word in ("train", "epoch", "1/2", "2/2")] == ["train", "epoch", "1/2", "2/2"]


def test_the_training_time_counts_the_encoding_before_it_also_after_a_resume(tmp_path):
    first, resumed = (EpochTable(path=tmp_path / "metrics.csv") for _ in range(2))
    first.rows = resumed.rows = [{"seconds": "13.0", "clips_per_second": "0"}]
    first.encoding_seconds = 352.04
    resumed.encoding_seconds = 0.5
    resumed.load_state_dict(first.state_dict())
    for table, encoding in ((first, 352.0), (resumed, 352.5)):
        summary = table.summary()
        assert summary["encoding_seconds"] == encoding
        assert summary["training_seconds"] == 13.0 + encoding


@pytest.mark.parametrize("seconds", [None, "x", -1e9, math.nan])
def test_a_damaged_state_in_a_checkpoint_is_refused(tmp_path, seconds):
    with pytest.raises(InputError, match="encoding_seconds"):
        EpochTable(path=tmp_path / "metrics.csv").load_state_dict({"encoding_seconds": seconds})


def test_a_damaged_cell_is_told_with_its_line(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,lr\n\n1,0.1\n\n\n2,many\n")
    with pytest.raises(InputError, match="line 6 is damaged"):
        read_epochs(path)
    path.write_text("epoch,lr\n\n1,0.1\n\n\n2\n")
    with pytest.raises(InputError, match="line 6 is damaged"):
        read_epochs(path)
