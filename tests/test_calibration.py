import numpy as np
import pytest
import torch

from stvid.evaluation.calibration import fit_temperature, fit_threshold


def scaled_logits(factor: float, videos: int = 4000) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits multiplied by a factor, and labels drawn from the original probabilities."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1.5, (videos, 4))
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (chances.cumsum(1) > rng.random((videos, 1))).argmax(1)
    return torch.tensor(logits * factor), torch.tensor(labels)


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_the_temperature_recovers_the_scale_of_the_logits(factor):
    logits, labels = scaled_logits(factor)
    assert fit_temperature(logits, torch.arange(len(labels)), labels) == pytest.approx(factor, rel=0.06)


def test_the_temperature_minimises_the_loss():
    logits, labels = scaled_logits(2.0, videos=300)
    logits = torch.cat([logits, logits.roll(1, 1) * 0.3])  # two views of each
    videos = torch.arange(300).repeat(2)

    def loss(temperature: float) -> float:
        probabilities = (logits / temperature).float().softmax(1).reshape(2, 300, 4).mean(0)
        return -probabilities.gather(1, labels[:, None]).log().mean().item()

    best = fit_temperature(logits, videos, labels)
    assert loss(best) <= min(loss(t) for t in np.geomspace(0.1, 10, 400)) + 1e-6


def test_the_temperature_has_a_lower_limit():
    assert fit_temperature(torch.eye(3) * 5, torch.arange(3), torch.arange(3)) == pytest.approx(0.1, rel=0.01)


@pytest.mark.parametrize("seed", range(5))
def test_no_other_threshold_separates_better(seed):
    rng = np.random.default_rng(seed)
    positives, negatives = rng.beta(4, 2, 50), rng.beta(2, 3, 40)
    threshold, share, share_frozen = fit_threshold(positives.tolist(), negatives.tolist())
    assert share == (positives >= threshold).mean()
    assert share_frozen == (negatives >= threshold).mean()
    others = np.linspace(0, 1, 2001)
    assert share - share_frozen >= max((positives >= t).mean() - (negatives >= t).mean() for t in others)


def test_of_equally_good_thresholds_the_middle_is_taken():
    assert fit_threshold([0.8, 0.9], [0.1, 0.3]) == (pytest.approx(0.55), 1.0, 0.0)
    assert fit_threshold([1.0], [0.5, 1.0])[0] == pytest.approx(0.75)


def test_a_threshold_lies_above_0_even_where_nothing_can_be_separated():
    threshold, share, share_frozen = fit_threshold([0.0], [0.0])
    assert 0 < threshold <= 1
    assert share == share_frozen
