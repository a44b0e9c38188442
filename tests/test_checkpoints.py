"""Checkpoints: the best score, early stopping, resuming, and atomic writing."""

import math
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from stvid.errors import InputError
from stvid.training.callbacks.checkpoints import (
    AtomicCheckpoints,
    BestCheckpoint,
    EarlyStop,
    LastCheckpoint,
    TrialPruning,
    ValScore,
)
from stvid.training.callbacks.preemption import Preemption

NAN = math.nan


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ((0.5 + 1 / 30_000, 3.0), (0.5, 1.0)),  # one video more out of 30,000, whatever the loss
        ((0.5, 1.0), (0.5, 1.0001)),
        ((0.5, 9.0), (0.5, math.inf)),
        ((0.0, 9.0), (0.9, NAN)),
        ((0.1, 1.0), (NAN, 1.0)),
    ],
)
def test_accuracy_comes_first_then_the_loss_and_nan_loses(better, worse):
    assert ValScore(*better).is_better_than(ValScore(*worse))
    assert not ValScore(*worse).is_better_than(ValScore(*better))
    assert not ValScore(*better).is_better_than(ValScore(*better))
    assert ValScore(*worse).is_better_than(None)


class Scripted(pl.LightningModule):
    """A weight that counts the epochs; accuracy and loss of each validation are given."""

    def __init__(self, scores):
        super().__init__()
        self.weight, self.scores = torch.nn.Parameter(torch.zeros(())), scores

    def training_step(self, batch, batch_idx):
        return -self.weight

    def validation_step(self, batch, batch_idx):
        accuracy, loss = self.scores[self.current_epoch]
        self.log_dict({"val_video_accuracy": accuracy, "val_loss": loss}, batch_size=1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def fit(folder, scores, *, epochs=None, patience=9, resume=False, select="best"):
    """Trains; returns the number of epochs trained, and the epoch (from 0) and weight of best.ckpt."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    last = LastCheckpoint(folder / "last.ckpt", every=None, preemption=Preemption())
    callbacks = [EarlyStop(patience=patience), BestCheckpoint(folder / "best.ckpt", select=select), last]
    trainer = pl.Trainer(accelerator="cpu", max_epochs=epochs or len(scores), callbacks=callbacks, **quiet)
    loader = DataLoader([0.0])
    path = folder / "last.ckpt" if resume else None
    trainer.fit(Scripted(scores), loader, loader, ckpt_path=path, weights_only=True)
    best = torch.load(folder / "best.ckpt", weights_only=True)
    return trainer.current_epoch, best["epoch"], best["state_dict"]["weight"].item()


TIES = [(0.5, NAN), (0.5, 1.0), (0.75, 3.0), (0.75, 2.0), (0.75, 2.0), (0.74, 0.1), (0.9, NAN)]


def test_the_best_checkpoint_is_that_of_the_best_score(tmp_path):
    assert fit(tmp_path, TIES) == (7, 3, 4.0)


def test_the_last_epoch_can_be_selected_instead(tmp_path):
    assert fit(tmp_path, TIES, select="last") == (7, 6, 7.0)
    with pytest.raises(InputError, match=r"checkpoint \(=first\) must be one of best, last"):
        BestCheckpoint(tmp_path / "best.ckpt", select="first")


@pytest.mark.parametrize("epochs", [1, 3, 4, 6])
def test_a_run_resumed_in_another_folder_keeps_its_best_score(tmp_path, epochs):
    fit(tmp_path / "run", TIES, epochs=epochs)
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    assert fit(moved, TIES, resume=True) == (7, 3, 4.0)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("resume_after", [None, 4, 5])
def test_a_run_stops_after_patience_validations_without_a_better_score(tmp_path, resume_after):
    """A lower loss at the same accuracy is better; the epochs before an interruption count."""
    scores = [*TIES, (1.0, 0.0)]
    if resume_after:
        fit(tmp_path, scores, epochs=resume_after, patience=3)
    assert fit(tmp_path, scores, patience=3, resume=bool(resume_after)) == (7, 3, 4.0)


def test_a_run_that_stopped_early_trains_no_further_epoch(tmp_path):
    fit(tmp_path, TIES, patience=1)
    assert fit(tmp_path, TIES, patience=1, resume=True)[0] == 5


def test_a_kill_during_writing_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    io, path = AtomicCheckpoints(), tmp_path / "checkpoints" / "last.ckpt"
    io.save_checkpoint({"step": 1}, path)

    def interrupted_save(content, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted_save)
    with pytest.raises(KeyboardInterrupt):
        io.save_checkpoint({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}


@pytest.mark.parametrize(
    ("callback", "state"),
    [
        (BestCheckpoint(Path("best.ckpt")), {"best": "high"}),
        (BestCheckpoint(Path("best.ckpt")), {}),
        (EarlyStop(patience=1), {"best": [0.5], "wait_count": 0}),
        (EarlyStop(patience=1), {"best": None, "wait_count": -1}),
        (TrialPruning(lambda epoch, accuracy: False), {"stopped": "no"}),
    ],
)
def test_a_damaged_state_in_a_checkpoint_is_refused(callback, state):
    with pytest.raises(InputError, match="the checkpoint's"):
        callback.load_state_dict(state)
