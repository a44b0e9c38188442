"""Steps that a GPU has not computed yet when the next ones are asked of it: here a CPU plays the GPU."""

import math

import pytest
import torch
from test_task import Means, batch, fit, new_task

from stvid.device import HostCopy
from stvid.errors import InputError
from stvid.training import losses as nonfinite
from stvid.training import task
from stvid.training.callbacks.checkpoints import LastCheckpoint
from stvid.training.callbacks.preemption import Preemption
from stvid.training.losses import FiniteCheck


class Breaks(Means):
    """NaN for the batch of three clips."""

    def forward(self, clips_BCTHW, lengths_B=None):
        logits = super().forward(clips_BCTHW, lengths_B)
        return logits * math.nan if len(logits) == 3 else logits


BATCHES = [batch(0), batch(1), batch(2, size=3), batch(3), batch(4), batch(5)]


@pytest.fixture
def late(monkeypatch):
    """Copies are ready as soon as so many others were asked for after them; or only when they are waited for."""

    def set_lag(lag):
        made = []

        class Late(HostCopy):
            def __init__(self, values):
                super().__init__(values)
                self.number = len(made)
                made.append(self)

            is_ready = property(lambda self: lag is not None and len(made) > self.number + lag)

        monkeypatch.setattr(nonfinite, "HostCopy", Late)
        return made

    return set_lag


@pytest.mark.parametrize(("lag", "steps_begun"), [(0, 3), (1, 4), (2, 5), (None, 6)])
def test_a_bad_step_is_named_however_late_it_is_known(late, lag, steps_begun):
    made, one = late(lag), new_task(Breaks())
    with pytest.raises(InputError, match=r"(?s)the loss is not finite after 2 steps.*2\.mp4") as caught:
        fit(one, BATCHES)
    assert not any(f"{i}.mp4" in str(caught.value) for i in (0, 1, 3, 4, 5))
    assert len(made) == steps_begun


def test_no_checkpoint_is_written_of_a_step_that_was_not_looked_at(late, tmp_path):
    late(None)
    last = LastCheckpoint(tmp_path / "checkpoints" / "last.ckpt", every=2, preemption=Preemption())
    with pytest.raises(InputError, match="after 2 steps"):
        fit(new_task(Breaks()), BATCHES, callbacks=[last], enable_checkpointing=True)
    kept = torch.load(last.path, weights_only=True)
    assert kept["global_step"] == 2
    assert all(torch.isfinite(weights).all() for weights in kept["state_dict"].values())


def test_no_model_is_judged_that_was_not_looked_at(late):
    late(None)
    one = new_task(Breaks())
    one.finite.add_batch(["a.mp4"], torch.tensor(math.nan))
    one.finite.add_step(None, number=7)
    with pytest.raises(InputError, match=r"(?s)after 7 steps.*a\.mp4"):
        one.on_validation_epoch_start()


@pytest.mark.parametrize("mine_is_bad", [True, False])
def test_several_processes_end_together_with_the_files_of_them_all(monkeypatch, mine_is_bad):
    """The other process is made up: it has the opposite loss."""
    monkeypatch.setattr(nonfinite, "num_processes", lambda: 2)
    monkeypatch.setattr(task, "num_processes", lambda: 2)
    other = [] if mine_is_bad else [["theirs.mp4"]]
    monkeypatch.setattr(nonfinite, "gathered", lambda content: [content, (other, [["theirs.mp4"]])])
    monkeypatch.setattr(task, "over_all", lambda values, take: torch.maximum(values, torch.tensor([0.0, 15.0, 1.0])))
    one = new_task(Means())
    one.finite.add_batch(["mine.mp4"], torch.tensor(math.nan if mine_is_bad else 1.0))
    one.finite.add_step(None, number=3)
    with pytest.raises(InputError, match=f"(?s)the loss is not finite after 3.*{'mine' if mine_is_bad else 'theirs'}"):
        one._agree_on_step(4)
    assert one.agreed_signal == 15


def test_several_processes_wait_for_each_other_before_weights_are_kept(monkeypatch):
    monkeypatch.setattr(nonfinite, "num_processes", lambda: 2)
    monkeypatch.setattr(nonfinite, "gathered", lambda content: [content, ([], [["theirs.mp4"]])])
    asked = []
    monkeypatch.setattr(nonfinite, "over_all", lambda values, take: asked.append(values.item()) or values)
    check = FiniteCheck()
    check.settle(torch.device("cpu"))
    check.add_batch(["mine.mp4"], torch.tensor(math.inf))
    check.add_step(None, number=0)
    with pytest.raises(InputError, match=r"mine\.mp4"):
        check.settle(torch.device("cpu"))
    assert asked == [0.0, 1.0]
