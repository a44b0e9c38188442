"""What the training step does with a batch; the oracles are formulas written out."""

import contextlib
import math
import sys
from collections import Counter

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from stvid.clip import ClipSpec
from stvid.device import HostCopy
from stvid.errors import InputError
from stvid.preprocess import Preprocess
from stvid.training.callbacks import callbacks
from stvid.training.callbacks.progress import EpochTable
from stvid.training.ema import WeightEMA
from stvid.training.losses import CrossEntropy
from stvid.training.mixing import Mixing
from stvid.training.optim import OptimizerFactory
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
    sgd = OptimizerFactory(optimizer=torch.optim.SGD, lr=0.5, schedule="constant", warmup=0)
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
    usual = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = pl.Trainer(max_epochs=1, callbacks=list(callbacks), **{**usual, **options})
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


# what makes a GPU wait: values read from it, shapes that depend on values, values put there from Python
WAITS = {
    "_local_scalar_dense",
    "nonzero",
    "equal",
    "is_nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "lift_fresh",
}
READERS = ("item", "tolist", "numpy", "cpu")


class Waits(TorchDispatchMode):
    """Counts what would make a GPU wait, on a CPU, where `HostCopy` is what copies without waiting."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.found, self.counting = Counter(), False
        for name in READERS:
            monkeypatch.setattr(torch.Tensor, name, self.counted(name, getattr(torch.Tensor, name)))

    def counted(self, name, usual):
        def read(tensor, *args, **kwargs):
            if self.counting and sys._getframe(1).f_code is not HostCopy.read.__code__:
                self.found[name] += 1
            return usual(tensor, *args, **kwargs)

        return read

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        indices = args[1] if name.startswith("index") and len(args) > 1 and isinstance(args[1], list | tuple) else ()
        by_value = any(index is not None and index.dtype == torch.bool for index in indices if hasattr(index, "dtype"))
        if self.counting and (name in WAITS or by_value):
            self.found[name] += 1
        return function(*args, **(kwargs or {}))


class Normed(Means):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm3d(3)

    def forward(self, clips_BCTHW, lengths_B=None):
        return super().forward(self.norm(clips_BCTHW))


def ordinary_steps(tmp_path, monkeypatch, entered, **options):
    """Six steps with all that a run does in them, and a bar that is drawn in every one.

    `entered` is called with True when the second begins, and with False when the last does.
    """
    monkeypatch.setattr("stvid.progress.Bar.due", True)

    class Window(pl.Callback):
        def on_train_batch_start(self, trainer, task, batch, batch_idx):
            if batch_idx in (1, 5):
                entered(batch_idx == 1)

    data = type("Data", (), {"max_bad_videos": 9, "bad": {}})
    chosen = {"has_logger": False, "save_every": None, "requeue": False, "ema": 0.9, "early_stopping": 2}
    watching = [Window(), *callbacks(tmp_path, data, **chosen), EpochTable(path=tmp_path / "metrics.csv")]
    momentum = OptimizerFactory(optimizer=lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9), lr=0.1, schedule="cosine")
    mixing = Mixing(mixup=0.8, cutmix=1.0)
    task = new_task(Normed(), optimization=momentum, mixing=mixing, class_weights=[1.0, 2.0, 3.0])
    options = {"gradient_clip_val": 1.0, "enable_checkpointing": True, **options}
    fit(task, [batch(i) for i in range(6)], callbacks=watching, **options)


def waits_in_ordinary_steps(tmp_path, monkeypatch):
    """Of four steps, as they would be counted on a GPU."""
    with Waits(monkeypatch) as waits:
        ordinary_steps(tmp_path, monkeypatch, lambda within: setattr(waits, "counting", within))
    return waits.found


def test_an_ordinary_step_makes_no_gpu_wait(monkeypatch, tmp_path):
    assert not waits_in_ordinary_steps(tmp_path, monkeypatch)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_sees_no_wait_in_an_ordinary_step(monkeypatch, tmp_path):
    def entered(within):
        torch.cuda.set_sync_debug_mode("error" if within else "default")

    try:
        ordinary_steps(tmp_path, monkeypatch, entered, accelerator="gpu", devices=1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_count_of_waits_sees_them(monkeypatch, tmp_path):
    """As an oracle of the test above: each of these would be found."""
    x, waits = torch.ones(3), Waits(monkeypatch)
    waits.counting = True
    with waits:
        for read in (float, bool, int):
            read(x.sum())
        x.tolist(), x.cpu(), x.nonzero(), x[x > 0], x[[0, 1]], torch.tensor(1.0), f"{x.sum():.2f}"
    assert waits.found.total() == 11
    HostCopy(x).read()
    assert waits.found.total() == 11


@contextlib.contextmanager
def two_processes():
    """One process that takes itself for the first of two; what they exchange stays as it is."""
    store = pytest.importorskip("torch.testing._internal.distributed.fake_pg").FakeStore()
    torch.distributed.init_process_group("fake", rank=0, world_size=2, store=store)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def test_of_several_processes_one_exchange_a_step_is_waited_for(monkeypatch, tmp_path):
    with two_processes():
        assert waits_in_ordinary_steps(tmp_path, monkeypatch) == {"tolist": 4}
