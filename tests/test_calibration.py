import numpy as np
import pytest
import torch

from stvid.evaluation.calibration import fit_temperature


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
