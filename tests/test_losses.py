"""Losses against torch's own, and against formulas written out clip by clip."""

import math

import pytest
import torch
from torch.nn import functional as F

from stvid.errors import InputError
from stvid.training.losses import CrossEntropy, Focal

LOGITS = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3], [-1.0, 3.0, 0.0], [0.0, 0.0, 1.0]])
LABELS = torch.tensor([0, 2, 1, 0])
HARD = F.one_hot(LABELS, 3).float()
SOFT = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.0, 1.0], [0.5, 0.25, 0.25], [0.1, 0.9, 0.0]])
WEIGHTS = torch.tensor([0.5, 2.0, 3.0])


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_of_one_class_each_the_mean_is_torchs_cross_entropy(smoothing, weights):
    loss_B, weight_B = CrossEntropy(label_smoothing=smoothing)(LOGITS, HARD, weights)
    wanted = F.cross_entropy(LOGITS, LABELS, weight=weights, label_smoothing=smoothing)
    assert loss_B.shape == weight_B.shape == (4,)
    torch.testing.assert_close(loss_B.sum() / weight_B.sum(), wanted)


def test_the_mean_over_two_processes_is_the_mean_over_all_clips():
    loss = CrossEntropy(label_smoothing=0.1)
    one, other = loss(LOGITS[:1], SOFT[:1], WEIGHTS), loss(LOGITS[1:], SOFT[1:], WEIGHTS)
    whole = loss(LOGITS, SOFT, WEIGHTS)
    torch.testing.assert_close(
        (one[0].sum() + other[0].sum()) / (one[1].sum() + other[1].sum()), whole[0].sum() / whole[1].sum()
    )


def test_a_mixed_clip_counts_by_the_shares_of_its_classes():
    loss_B, weight_B = CrossEntropy()(LOGITS, SOFT, WEIGHTS)
    torch.testing.assert_close(weight_B, torch.tensor([0.7 * 0.5 + 0.3 * 2, 3.0, 0.25 + 0.5 + 0.75, 0.05 + 1.8]))
    torch.testing.assert_close(CrossEntropy()(LOGITS, SOFT)[0], F.cross_entropy(LOGITS, SOFT, reduction="none"))
    log_p = LOGITS[0].log_softmax(0)
    assert loss_B[0].item() == pytest.approx(-(0.7 * 0.5 * log_p[0] + 0.3 * 2 * log_p[1]).item())


@pytest.mark.parametrize("gamma", [0.5, 2.0])
@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 3.0]])
def test_focal_is_its_formula(gamma, weights):
    smoothing = 0.1
    given = None if weights is None else torch.tensor(weights)
    loss_B, weight_B = Focal(gamma=gamma, label_smoothing=smoothing)(LOGITS, SOFT, given)
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
    for ours, wanted in zip(Focal(gamma=0)(LOGITS, SOFT, WEIGHTS), CrossEntropy()(LOGITS, SOFT, WEIGHTS), strict=True):
        torch.testing.assert_close(ours, wanted)


@pytest.mark.parametrize(
    "loss", [CrossEntropy(label_smoothing=0.1), Focal(gamma=2.0), Focal(gamma=0.5), Focal(gamma=0)]
)
def test_a_sure_answer_has_finite_gradients_in_half_precision_too(loss):
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], dtype=torch.bfloat16, requires_grad=True)
    losses, _ = loss(logits, torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    losses.sum().backward()
    assert losses.dtype == torch.float32
    assert losses.isfinite().all()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: CrossEntropy(label_smoothing=1.0), r"loss.label_smoothing \(=1.0\)"),
        (lambda: Focal(label_smoothing=-0.1), r"loss.label_smoothing \(=-0.1\)"),
        (lambda: Focal(gamma=-1), r"loss.gamma \(=-1\)"),
    ],
)
def test_impossible_losses_are_told(make, words):
    with pytest.raises(InputError, match=words):
        make()
