"""What the training loss counts; the oracle is the formula written out."""

import pytest
import torch
from torch import nn

from stvid.clip import ClipSpec, Preprocess
from stvid.errors import InputError
from stvid.training.task import ClassificationTask


class Fixed(nn.Module):
    """Logits that are the same whatever is shown."""

    def __init__(self, logits_BK):
        super().__init__()
        self.logits_BK = nn.Parameter(logits_BK)

    def forward(self, clips_BCTHW, lengths_B=None):
        return self.logits_BK


LOGITS = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3], [-1.0, 3.0, 0.0], [0.0, 0.0, 1.0]])
LABELS = torch.tensor([0, 2, 1, 0])


def loss(**options):
    preprocess = Preprocess(clip=ClipSpec(num_frames=2, size=8))
    task = ClassificationTask(
        model=Fixed(LOGITS.clone()), preprocess=preprocess, optimization=None, record={}, **options
    )
    task.log = task.log_dict = lambda *args, **kwargs: None
    clips = torch.zeros(4, 2, 3, 8, 8, dtype=torch.uint8)
    return task.training_step({"clips": clips, "lengths": None, "labels": LABELS}, 0).item()


def test_the_loss_is_the_mean_cross_entropy():
    by_hand = [-(row[label] - row.exp().sum().log()) for row, label in zip(LOGITS, LABELS, strict=True)]
    assert loss() == pytest.approx(torch.stack(by_hand).mean().item(), abs=1e-5)


def test_class_weights_make_a_clip_count_by_its_class():
    weights = [0.5, 2.0, 3.0]
    each = [-(row[label] - row.exp().sum().log()).item() for row, label in zip(LOGITS, LABELS, strict=True)]
    counts = [weights[label] for label in LABELS]
    by_hand = sum(w * e for w, e in zip(counts, each, strict=True)) / sum(counts)
    assert loss(class_weights=weights) == pytest.approx(by_hand, abs=1e-5)
    assert loss(class_weights=[1.0, 1.0, 1.0]) == pytest.approx(loss(), abs=1e-6)


def test_an_impossible_smoothing_is_told():
    with pytest.raises(InputError, match="label_smoothing"):
        loss(label_smoothing=1.0)
