"""Trial training steps: they really train, and the model is restored afterwards."""

from functools import partial

import pytest
import torch
from torch import nn

from stvid.clip import ClipSpec
from stvid.models.cnn_lstm import CNNLSTM
from stvid.models.conv3d import Conv3D
from stvid.models.layers import checkpoint_stages
from stvid.preprocess import channels_last
from stvid.training import batch_size
from stvid.training.batch_size import halve_until_it_fits, try_training
from stvid.training.optim import OptimizerFactory

CPU = torch.device("cpu")
CLIP = ClipSpec(num_frames=4, size=32)


class CountingAdamW(torch.optim.AdamW):
    """Counts the steps; with `fails`, the second one runs out of memory."""

    steps, fails = 0, False

    def step(self, closure=None):
        CountingAdamW.steps += 1
        super().step(closure)
        if CountingAdamW.fails and CountingAdamW.steps == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.fixture(autouse=True)
def reset_counts(monkeypatch):
    monkeypatch.setattr(CountingAdamW, "steps", 0)
    monkeypatch.setattr(CountingAdamW, "fails", False)


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def try_steps(model, **changes):
    options = {"batch_size": 3, "device": CPU, "precision": "32-true", "ema": True, **changes}
    optimization = OptimizerFactory(optimizer=partial(CountingAdamW, betas=(0.9, 0.99)), lr=1e-2)
    try_training(model, optimization, CLIP, **options)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("kind", ["conv3d", "cnn_lstm", "recomputed"])
def test_weights_buffers_modes_and_random_state_are_restored(monkeypatch, kind, fails):
    monkeypatch.setattr(CountingAdamW, "fails", fails)
    model = channels_last(CNNLSTM(num_classes=2) if kind == "cnn_lstm" else Conv3D(num_classes=2))
    if kind == "recomputed":
        checkpoint_stages(model)
    before, modes, random = state_of(model), [m.training for m in model.modules()], torch.get_rng_state()
    parameters = list(model.parameters())
    try:
        try_steps(model)
    except torch.OutOfMemoryError:
        assert fails
    assert CountingAdamW.steps == 2
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(new is old for new, old in zip(model.parameters(), parameters, strict=True))
    assert all(parameter.grad is None and parameter.device == CPU for parameter in parameters)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)


def test_without_restoring_the_weights_would_change(monkeypatch):
    """So the trial uses the memory of real training."""
    monkeypatch.setattr(batch_size, "_restored_state", lambda model, device: torch.random.fork_rng(devices=[]))
    model = Conv3D(num_classes=2)
    before = state_of(model)
    try_steps(model)
    assert not any(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_a_compiled_model_is_not_compiled_for_the_trial():
    model, compiled = Conv3D(num_classes=2), []
    model._compiled_call_impl = lambda *args: compiled.append(args)
    original = model._compiled_call_impl
    try_steps(model)
    assert not compiled
    assert model._compiled_call_impl is original


@pytest.mark.parametrize("message", ["cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED"])
def test_allocation_errors_of_cudnn_and_cublas_count_as_out_of_memory(message):
    def step(batch_size):
        if batch_size > 10:
            raise RuntimeError(message)

    assert halve_until_it_fits(40, step) == 10


def test_other_errors_are_raised():
    def step(batch_size):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        halve_until_it_fits(8, step)


def test_memory_of_a_failed_step_is_freed_before_the_next_one():
    alive = []

    class Activations(nn.Module):
        def __del__(self):
            alive.remove(id(self))

    def step(batch_size):
        assert not alive
        held = Activations()
        alive.append(id(held))
        if batch_size > 2:
            raise torch.OutOfMemoryError

    assert halve_until_it_fits(8, step) == 2
