"""The training step, compared with formulas; it does not synchronise with the GPU."""

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
from stvid.models.base import VideoModel
from stvid.preprocess import Preprocess
from stvid.training.callbacks import build_callbacks
from stvid.training.callbacks.progress import EpochTable
from stvid.training.losses import CrossEntropy
from stvid.training.mixing import Mixing
from stvid.training.optim import OptimizerFactory
from stvid.training.task import ClassificationTask

LOGITS = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3], [-1.0, 3.0, 0.0], [0.0, 0.0, 1.0]])
LABELS = torch.tensor([0, 2, 1, 0])
RECORD = {"class_names": ["a", "b", "c"]}


class Fixed(VideoModel):
    """A model with constant logits."""

    def __init__(self, logits_BK):
        super().__init__()
        self.logits_BK = nn.Parameter(logits_BK)

    def forward(self, clips_BCTHW, lengths_B=None):
        return self.logits_BK


class Means(VideoModel):
    """A linear layer on the mean colour, whose gradient has a simple formula."""

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
    task._accumulation_factor = lambda batch_idx: 1.0
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
    batches = [{"failed": [], **item} for item in batches]
    trainer.fit(task, DataLoader(batches, batch_size=None))
    return task


def weights_of(task, hook):
    """A list of weights, and the callback that appends to it in each call of a hook."""
    seen = []
    return seen, type("Record", (pl.Callback,), {hook: lambda *args: seen.append(task.model.head.weight + 0)})()


def gradient(model, batches, preprocess):
    """Gradient of the mean loss over all clips of the batches, by autograd."""
    clips, labels = (torch.cat([item[key] for item in batches]) for key in ("clips", "labels"))
    value = nn.functional.cross_entropy(model(preprocess(clips)), labels)
    return torch.autograd.grad(value, model.head.weight)[0]


def test_the_loss_is_the_mean_cross_entropy():
    by_hand = [-(row[label] - row.exp().sum().log()) for row, label in zip(LOGITS, LABELS, strict=True)]
    assert loss() == pytest.approx(torch.stack(by_hand).mean().item(), abs=1e-5)


def test_the_loss_with_class_weights_is_the_weighted_mean():
    weights = [0.5, 2.0, 3.0]
    each = [-(row[label] - row.exp().sum().log()).item() for row, label in zip(LOGITS, LABELS, strict=True)]
    counts = [weights[label] for label in LABELS]
    by_hand = sum(w * e for w, e in zip(counts, each, strict=True)) / sum(counts)
    assert loss(class_weights=weights) == pytest.approx(by_hand, abs=1e-5)
    assert loss(class_weights=[1.0, 1.0, 1.0]) == pytest.approx(loss(), abs=1e-6)


def test_accumulated_gradients_are_the_mean_over_the_batches_also_in_a_shorter_last_step():
    task = new_task(Means())
    weights, batches = task.model.head.weight.detach().clone(), [batch(i) for i in range(3)]
    for together in (batches[:2], batches[2:]):
        by_hand = Means()
        by_hand.head.weight.data = weights
        weights = weights - 0.5 * gradient(by_hand, together, task.preprocess)
    fit(task, batches, accumulate_grad_batches=2)
    torch.testing.assert_close(task.model.head.weight.detach(), weights, rtol=0, atol=1e-6)


def test_gradients_are_clipped_to_the_given_norm():
    task = new_task(Means())
    before, item = task.model.head.weight.detach().clone(), batch(0)
    expected = gradient(task.model, [item], task.preprocess)
    fit(task, [item], gradient_clip_val=0.01)
    moved = (before - task.model.head.weight.detach()) / 0.5
    torch.testing.assert_close(moved, expected * 0.01 / expected.norm(), rtol=1e-4, atol=1e-8)
    assert task.gradient_norm.item() == pytest.approx(expected.norm().item(), rel=1e-4)


def test_the_loss_of_mixed_clips_uses_mixed_targets():
    """The loss is the mixture of the losses of both classes, with the share of mixup."""
    logits, mixing = LOGITS[:2], Mixing(mixup=1.0)
    task = new_task(Fixed(logits.clone()), mixing=mixing)
    task._accumulation_factor = lambda batch_idx: 1.0
    task.log = lambda *args, **kwargs: None
    task.rng = np.random.default_rng(7)
    item = {**batch(0), "labels": LABELS[:2]}
    share = float(expected_share(mixing))
    each = logits.log_softmax(1)
    mean = -(share * (each[0, 0] + each[1, 2]) + (1 - share) * (each[0, 2] + each[1, 0])) / 2
    assert task.training_step(item, 0).item() == pytest.approx(mean.item(), abs=1e-5)


def expected_share(mixing):
    _, _, targets_BK = mixing(batch(0)["clips"], None, torch.eye(2), np.random.default_rng(7))
    assert 0 < targets_BK[0, 0] < 1
    return targets_BK[0, 0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_nan_or_infinite_loss_stops_before_the_step_and_names_the_videos(bad):
    class Breaks(Means):
        def forward(self, clips_BCTHW, lengths_B=None):
            logits = super().forward(clips_BCTHW, lengths_B)
            return logits * bad if len(logits) == 3 else logits  # the batch of three

    task, batches = new_task(Breaks()), [batch(0), batch(1), batch(2, size=3), batch(3)]
    before, record = weights_of(task, "on_train_batch_start")
    with pytest.raises(InputError, match=r"(?s)the loss is not finite after 2 steps.*2\.mp4") as caught:
        fit(task, batches, callbacks=[record])
    assert "1.mp4" not in str(caught.value)
    assert torch.equal(task.model.head.weight, before[2])


def test_a_nan_gradient_stops_before_the_step():
    task = new_task(Means())
    task.model.head.weight.register_hook(lambda gradient: gradient * math.nan)
    before = task.model.head.weight.detach().clone()
    with pytest.raises(InputError, match=r"(?s)a gradient is not finite after 0 steps.*0\.mp4"):
        fit(task, [batch(0)])
    assert torch.equal(task.model.head.weight, before)


def test_randomness_depends_only_on_seed_epoch_step_and_rank():
    task = new_task(Means(), seed=3)
    task._trainer = type("Trainer", (), {"current_epoch": 5, "global_rank": 0})()

    def random_numbers(batch_idx):
        torch.rand(batch_idx + 1)  # the earlier state does not matter
        task.on_train_batch_start({}, batch_idx)
        return torch.rand(3).tolist(), task.rng.random()

    assert random_numbers(7) == random_numbers(7)
    assert random_numbers(7) != random_numbers(8)


# operations that synchronise with the GPU: reading values, shapes that depend on values, values copied from Python
SYNC_OPS = {
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


class SyncCounter(TorchDispatchMode):
    """Counts on a CPU what would synchronise with a GPU; `HostCopy` would not."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.counts, self.counting = Counter(), False
        for name in READERS:
            monkeypatch.setattr(torch.Tensor, name, self.counted(name, getattr(torch.Tensor, name)))

    def counted(self, name, original):
        def read(tensor, *args, **kwargs):
            if self.counting and sys._getframe(1).f_code is not HostCopy.read.__code__:
                self.counts[name] += 1
            return original(tensor, *args, **kwargs)

        return read

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        indices = args[1] if name.startswith("index") and len(args) > 1 and isinstance(args[1], list | tuple) else ()
        by_value = any(index is not None and index.dtype == torch.bool for index in indices if hasattr(index, "dtype"))
        if self.counting and (name in SYNC_OPS or by_value):
            self.counts[name] += 1
        return function(*args, **(kwargs or {}))


class Normed(Means):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm3d(3)

    def forward(self, clips_BCTHW, lengths_B=None):
        return super().forward(self.norm(clips_BCTHW))


def train_six_steps(tmp_path, monkeypatch, set_window, **options):
    """Six steps with the callbacks of a run; the bar is drawn in every step.

    Calls `set_window` with True at the start of the second step and with False at the start of the last.
    """
    monkeypatch.setattr("stvid.progress.Bar.due", True)

    class Window(pl.Callback):
        def on_train_batch_start(self, trainer, task, batch, batch_idx):
            if batch_idx in (1, 5):
                set_window(batch_idx == 1)

    data = type("Data", (), {"max_bad_videos": 9, "bad": {}})
    files = {name: tmp_path / name for name in ("best_checkpoint", "last_checkpoint", "bad_videos")}
    chosen = {"has_logger": False, "save_every": None, "requeue": False, "ema": 0.9, "early_stopping": 2}
    callbacks = build_callbacks(data, select="best", **files, **chosen)
    watching = [Window(), *callbacks, EpochTable(path=tmp_path / "metrics.csv")]
    momentum = OptimizerFactory(optimizer=lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9), lr=0.1, schedule="cosine")
    mixing = Mixing(mixup=0.8, cutmix=1.0)
    task = new_task(Normed(), optimization=momentum, mixing=mixing, class_weights=[1.0, 2.0, 3.0])
    options = {"gradient_clip_val": 1.0, "enable_checkpointing": True, **options}
    fit(task, [batch(i) for i in range(6)], callbacks=watching, **options)


def syncs_in_four_steps(tmp_path, monkeypatch):
    """Operations in four steps that would synchronise with a GPU."""
    with SyncCounter(monkeypatch) as counter:
        train_six_steps(tmp_path, monkeypatch, lambda within: setattr(counter, "counting", within))
    return counter.counts


def test_a_training_step_does_not_synchronise_with_the_gpu(monkeypatch, tmp_path):
    assert not syncs_in_four_steps(tmp_path, monkeypatch)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_reports_no_synchronisation_in_a_training_step(monkeypatch, tmp_path):
    def set_window(within):
        torch.cuda.set_sync_debug_mode("error" if within else "default")

    try:
        train_six_steps(tmp_path, monkeypatch, set_window, accelerator="gpu", devices=1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_counter_detects_synchronisations(monkeypatch, tmp_path):
    """Checks the counter of the tests above."""
    x, counter = torch.ones(3), SyncCounter(monkeypatch)
    counter.counting = True
    with counter:
        for read in (float, bool, int):
            read(x.sum())
        x.tolist(), x.cpu(), x.nonzero(), x[x > 0], x[[0, 1]], torch.tensor(1.0), f"{x.sum():.2f}"
    assert counter.counts.total() == 11
    HostCopy(x).read()
    assert counter.counts.total() == 11


@contextlib.contextmanager
def two_processes():
    """A fake process group of two processes; collectives return their input."""
    store = pytest.importorskip("torch.testing._internal.distributed.fake_pg").FakeStore()
    torch.distributed.init_process_group("fake", rank=0, world_size=2, store=store)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def test_several_processes_synchronise_once_per_step(monkeypatch, tmp_path):
    with two_processes():
        assert syncs_in_four_steps(tmp_path, monkeypatch) == {"tolist": 4}
