"""What the training step does with a batch; the oracles are formulas written out."""

import math

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from stvid.clip import ClipSpec, Preprocess
from stvid.errors import InputError
from stvid.training.ema import WeightEMA
from stvid.training.losses import CrossEntropy
from stvid.training.mixing import Mixing
from stvid.training.optim import Optimization
from stvid.training.task import ClassificationTask

LOGITS = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3], [-1.0, 3.0, 0.0], [0.0, 0.0, 1.0]])
LABELS = torch.tensor([0, 2, 1, 0])
RECORD = {"class_names": ["a", "b", "c"]}


class Fixed(nn.Module):
    """Logits that are the same whatever is shown."""

    def __init__(self, logits_BK):
        super().__init__()
        self.logits_BK = nn.Parameter(logits_BK)

    def forward(self, clips_BCTHW, lengths_B=None):
        return self.logits_BK


class Means(nn.Module):
    """One linear layer over the mean colour: something of which the gradient is easily written down."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 3, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(torch.arange(9).view(3, 3) / 10)

    def forward(self, clips_BCTHW, lengths_B=None):
        return self.head(clips_BCTHW.mean((2, 3, 4)))


def new_task(model, **options):
    preprocess = Preprocess(clip=ClipSpec(num_frames=2, size=4, normalize="fixed"))
    sgd = Optimization(optimizer=torch.optim.SGD, lr=0.5, schedule="constant", warmup=0)
    options = {"optimization": sgd, "loss": CrossEntropy(), **options}
    return ClassificationTask(model=model, preprocess=preprocess, record=RECORD, **options)


def loss(**options):
    task = new_task(Fixed(LOGITS.clone()), **options)
    task._window = lambda batch_idx: 1.0
    task.log = lambda *args, **kwargs: None
    clips = torch.zeros(4, 2, 3, 4, 4, dtype=torch.uint8)
    return task.training_step({"clips": clips, "lengths": None, "labels": LABELS, "paths": ["x"] * 4}, 0).item()


def batch(seed, size=2):
    rng = np.random.default_rng(seed)
    clips = torch.from_numpy(rng.integers(0, 255, (size, 2, 3, 4, 4), dtype=np.uint8))
    labels = torch.from_numpy(rng.integers(0, 3, size))
    videos = torch.arange(size)
    return {"clips": clips, "lengths": None, "labels": labels, "videos": videos, "paths": [f"{seed}.mp4"] * size}


def fit(task, batches, *, callbacks=(), **options):
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = pl.Trainer(accelerator="cpu", max_epochs=1, callbacks=list(callbacks), **quiet, **options)
    batches = [{"failed": [], **one} for one in batches]
    trainer.fit(task, DataLoader(batches, batch_size=None))
    return task


def weights_of(task, hook):
    """A list that fills with the weights, and the callback that fills it."""
    seen = []
    return seen, type("Keep", (pl.Callback,), {hook: lambda *args: seen.append(task.model.head.weight + 0)})()


def gradient(model, batches, preprocess):
    """Of the mean over all clips of the batches, by autograd alone."""
    clips, labels = (torch.cat([one[key] for one in batches]) for key in ("clips", "labels"))
    value = nn.functional.cross_entropy(model(preprocess(clips)), labels)
    return torch.autograd.grad(value, model.head.weight)[0]


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


def test_accumulated_gradients_are_the_mean_over_the_batches_also_of_the_last_few():
    task = new_task(Means())
    weights, batches = task.model.head.weight.detach().clone(), [batch(i) for i in range(3)]
    for together in (batches[:2], batches[2:]):
        by_hand = Means()
        by_hand.head.weight.data = weights
        weights = weights - 0.5 * gradient(by_hand, together, task.preprocess)
    fit(task, batches, accumulate_grad_batches=2)
    torch.testing.assert_close(task.model.head.weight.detach(), weights, rtol=0, atol=1e-6)


def test_gradients_are_clipped_to_the_norm_that_was_told():
    task = new_task(Means())
    before, one = task.model.head.weight.detach().clone(), batch(0)
    found = gradient(task.model, [one], task.preprocess)
    fit(task, [one], gradient_clip_val=0.01)
    moved = (before - task.model.head.weight.detach()) / 0.5
    torch.testing.assert_close(moved, found * 0.01 / found.norm(), rtol=1e-4, atol=1e-8)
    assert task.gradient_norm.item() == pytest.approx(found.norm().item(), rel=1e-4)


def test_what_is_mixed_is_what_is_learned():
    """With every clip mixed into its neighbour by the same share, the loss is that of the mixed truth."""
    logits, mixing = LOGITS[:2], Mixing(mixup=1.0)
    task = new_task(Fixed(logits.clone()), mixing=mixing)
    task._window = lambda batch_idx: 1.0
    task.log = lambda *args, **kwargs: None
    task.rng = np.random.default_rng(7)
    one = {**batch(0), "labels": LABELS[:2]}
    share = float(expected_share(mixing))
    each = logits.log_softmax(1)
    mean = -(share * (each[0, 0] + each[1, 2]) + (1 - share) * (each[0, 2] + each[1, 0])) / 2
    assert task.training_step(one, 0).item() == pytest.approx(mean.item(), abs=1e-5)


def expected_share(mixing):
    _, _, targets_BK = mixing(batch(0)["clips"], None, torch.eye(2), np.random.default_rng(7))
    assert 0 < targets_BK[0, 0] < 1
    return targets_BK[0, 0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_before_the_step_and_names_the_files(bad):
    class Breaks(Means):
        def forward(self, clips_BCTHW, lengths_B=None):
            logits = super().forward(clips_BCTHW, lengths_B)
            return logits * bad if len(logits) == 3 else logits  # the batch of three

    task, batches = new_task(Breaks()), [batch(0), batch(1), batch(2, size=3), batch(3)]
    before, keep = weights_of(task, "on_train_batch_start")
    with pytest.raises(InputError, match=r"(?s)the loss is not finite after 2 steps.*2\.mp4") as caught:
        fit(task, batches, callbacks=[keep])
    assert "1.mp4" not in str(caught.value)
    assert torch.equal(task.model.head.weight, before[2])


def test_a_gradient_that_is_no_number_stops_before_the_step_too():
    task = new_task(Means())
    task.model.head.weight.register_hook(lambda gradient: gradient * math.nan)
    before = task.model.head.weight.detach().clone()
    with pytest.raises(InputError, match=r"(?s)a gradient is not finite after 0 steps.*0\.mp4"):
        fit(task, [batch(0)])
    assert torch.equal(task.model.head.weight, before)


def test_chance_in_a_step_depends_on_seed_epoch_and_step_alone():
    task = new_task(Means(), seed=3)
    task._trainer = type("Trainer", (), {"current_epoch": 5, "global_rank": 0})()

    def drawn(batch_idx):
        torch.rand(batch_idx + 1)  # whatever came before
        task.on_train_batch_start({}, batch_idx)
        return torch.rand(3).tolist(), task.rng.random()

    assert drawn(7) == drawn(7)
    assert drawn(7) != drawn(8)


def test_the_average_of_the_weights_follows_its_formula_and_is_what_is_kept():
    task = new_task(Means())
    seen, keep = weights_of(task, "on_train_batch_end")
    average = WeightEMA(decay=0.3)
    fit(task, [batch(i) for i in range(5)], callbacks=[keep, average])
    by_hand = seen[0]
    for n, weights in enumerate(seen[1:], start=1):
        decay = min(0.3, (1 + n) / (10 + n))
        by_hand = decay * by_hand + (1 - decay) * weights
    assert average.decay_at(1) == pytest.approx(2 / 11)
    torch.testing.assert_close(task.model.head.weight, by_hand, rtol=0, atol=1e-7)


def test_an_impossible_average_is_told():
    with pytest.raises(InputError, match=r"ema \(=1.5\)"):
        WeightEMA(decay=1.5)
