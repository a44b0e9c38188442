"""Losses against torch's own and against formulas; the check for finite values, with a CPU in the role of the GPU."""

import math

import pytest
import torch
from test_task import Means, batch, fit, new_task
from torch.nn import functional as F

from stvid.device import HostCopy
from stvid.errors import InputError
from stvid.training import losses, task
from stvid.training.callbacks.checkpoints import LastCheckpoint
from stvid.training.callbacks.preemption import Preemption
from stvid.training.losses import CrossEntropy, FiniteCheck, Focal

LOGITS = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3], [-1.0, 3.0, 0.0], [0.0, 0.0, 1.0]])
LABELS = torch.tensor([0, 2, 1, 0])
HARD = F.one_hot(LABELS, 3).float()
SOFT = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.0, 1.0], [0.5, 0.25, 0.25], [0.1, 0.9, 0.0]])
WEIGHTS = torch.tensor([0.5, 2.0, 3.0])


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_with_single_class_targets_the_mean_is_torchs_cross_entropy(smoothing, weights):
    loss_B, weight_B = CrossEntropy(label_smoothing=smoothing)(LOGITS, HARD, weights)
    expected = F.cross_entropy(LOGITS, LABELS, weight=weights, label_smoothing=smoothing)
    assert loss_B.shape == weight_B.shape == (4,)
    torch.testing.assert_close(loss_B.sum() / weight_B.sum(), expected)


def test_the_mean_over_two_processes_is_the_mean_over_all_clips():
    loss = CrossEntropy(label_smoothing=0.1)
    item, other = loss(LOGITS[:1], SOFT[:1], WEIGHTS), loss(LOGITS[1:], SOFT[1:], WEIGHTS)
    whole = loss(LOGITS, SOFT, WEIGHTS)
    torch.testing.assert_close(
        (item[0].sum() + other[0].sum()) / (item[1].sum() + other[1].sum()), whole[0].sum() / whole[1].sum()
    )


def test_the_weight_of_a_mixed_clip_is_the_mean_over_its_classes():
    loss_B, weight_B = CrossEntropy()(LOGITS, SOFT, WEIGHTS)
    torch.testing.assert_close(weight_B, torch.tensor([0.7 * 0.5 + 0.3 * 2, 3.0, 0.25 + 0.5 + 0.75, 0.05 + 1.8]))
    torch.testing.assert_close(CrossEntropy()(LOGITS, SOFT)[0], F.cross_entropy(LOGITS, SOFT, reduction="none"))
    log_p = LOGITS[0].log_softmax(0)
    assert loss_B[0].item() == pytest.approx(-(0.7 * 0.5 * log_p[0] + 0.3 * 2 * log_p[1]).item())


@pytest.mark.parametrize("gamma", [0.5, 2.0])
@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 3.0]])
def test_focal_loss_follows_its_formula(gamma, weights):
    smoothing = 0.1
    class_weights = None if weights is None else torch.tensor(weights)
    loss_B, weight_B = Focal(gamma=gamma, label_smoothing=smoothing)(LOGITS, SOFT, class_weights)
    for b, (logits, target) in enumerate(zip(LOGITS.tolist(), SOFT.tolist(), strict=True)):
        total, by_hand, count = sum(map(math.exp, logits)), 0.0, 0.0
        for k in range(3):
            p, w = math.exp(logits[k]) / total, 1.0 if weights is None else weights[k]
            share = target[k] * (1 - smoothing) + smoothing / 3
            by_hand -= w * share * (1 - p) ** gamma * math.log(p)
            count += w * target[k]
        assert loss_B[b].item() == pytest.approx(by_hand, rel=1e-4)
        assert weight_B[b].item() == pytest.approx(count, rel=1e-5)


def test_focal_with_gamma_0_is_cross_entropy():
    for ours, expected in zip(
        Focal(gamma=0)(LOGITS, SOFT, WEIGHTS), CrossEntropy()(LOGITS, SOFT, WEIGHTS), strict=True
    ):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize(
    "loss", [CrossEntropy(label_smoothing=0.1), Focal(gamma=2.0), Focal(gamma=0.5), Focal(gamma=0)]
)
def test_confident_predictions_have_finite_gradients_in_half_precision(loss):
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], dtype=torch.bfloat16, requires_grad=True)
    loss_B, _ = loss(logits, torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    loss_B.sum().backward()
    assert loss_B.dtype == torch.float32
    assert loss_B.isfinite().all()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CrossEntropy(label_smoothing=1.0), r"loss.label_smoothing \(=1.0\)"),
        (lambda: Focal(label_smoothing=-0.1), r"loss.label_smoothing \(=-0.1\)"),
        (lambda: Focal(gamma=-1), r"loss.gamma \(=-1\)"),
    ],
)
def test_values_out_of_range_are_input_errors(make, message):
    with pytest.raises(InputError, match=message):
        make()


class Breaks(Means):
    """NaN for the batch of three clips."""

    def forward(self, clips_BCTHW, lengths_B=None):
        logits = super().forward(clips_BCTHW, lengths_B)
        return logits * math.nan if len(logits) == 3 else logits


BATCHES = [batch(0), batch(1), batch(2, size=3), batch(3), batch(4), batch(5)]


@pytest.fixture
def late(monkeypatch):
    """Copies become ready when `lag` later copies exist; with None, only by waiting."""

    def set_lag(lag):
        made = []

        class Late(HostCopy):
            def __init__(self, values):
                super().__init__(values)
                self.number = len(made)
                made.append(self)

            is_ready = property(lambda self: lag is not None and len(made) > self.number + lag)

        monkeypatch.setattr(losses, "HostCopy", Late)
        return made

    return set_lag


@pytest.mark.parametrize(("lag", "steps_started"), [(0, 3), (1, 4), (2, 5), (None, 6)])
def test_the_message_names_the_bad_step_even_if_the_gpu_reports_it_late(late, lag, steps_started):
    copies, broken = late(lag), new_task(Breaks())
    with pytest.raises(InputError, match=r"(?s)the loss is not finite after 2 steps.*2\.mp4") as caught:
        fit(broken, BATCHES)
    assert not any(f"{i}.mp4" in str(caught.value) for i in (0, 1, 3, 4, 5))
    assert len(copies) == steps_started


def test_no_checkpoint_is_written_after_an_unchecked_bad_step(late, tmp_path):
    late(None)
    last = LastCheckpoint(tmp_path / "checkpoints", every=2, preemption=Preemption())
    with pytest.raises(InputError, match="after 2 steps"):
        fit(new_task(Breaks()), BATCHES, callbacks=[last], enable_checkpointing=True)
    checkpoint = torch.load(last.path, weights_only=True)
    assert checkpoint["global_step"] == 2
    assert all(torch.isfinite(weights).all() for weights in checkpoint["state_dict"].values())


def test_no_model_is_validated_after_an_unchecked_bad_step(late):
    late(None)
    task_ = new_task(Breaks())
    task_.finite.add_batch(["a.mp4"], torch.tensor(math.nan))
    task_.finite.add_step(None, number=7)
    with pytest.raises(InputError, match=r"(?s)after 7 steps.*a\.mp4"):
        task_.on_validation_epoch_start()


@pytest.mark.parametrize("own_is_bad", [True, False])
def test_all_processes_stop_and_name_the_videos_of_all_processes(monkeypatch, own_is_bad):
    """The other process is simulated; its loss is finite if that of this process is not, and vice versa."""
    monkeypatch.setattr(losses, "get_world_size", lambda: 2)
    monkeypatch.setattr(task, "get_world_size", lambda: 2)
    other_bad = [] if own_is_bad else [["other.mp4"]]
    monkeypatch.setattr(losses, "all_gather_object", lambda content: [content, (other_bad, [["other.mp4"]])])
    monkeypatch.setattr(task, "all_reduce", lambda values, op: torch.maximum(values, torch.tensor([0.0, 15.0, 1.0])))
    task_ = new_task(Means())
    task_.finite.add_batch(["own.mp4"], torch.tensor(math.nan if own_is_bad else 1.0))
    task_.finite.add_step(None, number=3)
    with pytest.raises(InputError, match=f"(?s)the loss is not finite after 3.*{'own' if own_is_bad else 'other'}"):
        task_._sync_step_flags(4)
    assert task_.agreed_signal == 15


def test_processes_check_together_before_weights_are_saved(monkeypatch):
    monkeypatch.setattr(losses, "get_world_size", lambda: 2)
    monkeypatch.setattr(losses, "all_gather_object", lambda content: [content, ([], [["other.mp4"]])])
    flags = []
    monkeypatch.setattr(losses, "all_reduce", lambda values, op: flags.append(values.item()) or values)
    check = FiniteCheck()
    check.wait(torch.device("cpu"))
    check.add_batch(["own.mp4"], torch.tensor(math.inf))
    check.add_step(None, number=0)
    with pytest.raises(InputError, match=r"own\.mp4"):
        check.wait(torch.device("cpu"))
    assert flags == [0.0, 1.0]
