"""A training step on trial: it really trains, and nobody can tell afterwards."""

from functools import partial

import pytest
import torch
from torch import nn

from stvid.clip import ClipSpec
from stvid.models.cnn_lstm import CNNLSTM
from stvid.models.conv3d import Conv3D
from stvid.models.layers import checkpoint_stages
from stvid.preprocess import channels_last
from stvid.training import batch_size as trial
from stvid.training.batch_size import halve_until_it_fits, try_training
from stvid.training.optim import OptimizerFactory

CPU = torch.device("cpu")
CLIP = ClipSpec(num_frames=4, size=32)


class Spy(torch.optim.AdamW):
    """Notes the steps; runs out of memory in the second where it is told to."""

    steps, fails = 0, False

    def step(self, closure=None):
        Spy.steps += 1
        super().step(closure)
        if Spy.fails and Spy.steps == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.fixture(autouse=True)
def spy(monkeypatch):
    monkeypatch.setattr(Spy, "steps", 0)
    monkeypatch.setattr(Spy, "fails", False)


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def try_on(model, **changes):
    options = {"batch_size": 3, "device": CPU, "precision": "32-true", "ema": True, **changes}
    optimization = OptimizerFactory(optimizer=partial(Spy, betas=(0.9, 0.99)), lr=1e-2)
    try_training(model, optimization, CLIP, **options)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("kind", ["conv3d", "cnn_lstm", "recomputed"])
def test_weights_buffers_modes_and_random_state_stay_what_they_were(monkeypatch, kind, fails):
    monkeypatch.setattr(Spy, "fails", fails)
    model = channels_last(CNNLSTM(num_classes=2) if kind == "cnn_lstm" else Conv3D(num_classes=2))
    if kind == "recomputed":
        checkpoint_stages(model)
    before, modes, random = state_of(model), [m.training for m in model.modules()], torch.get_rng_state()
    parameters = list(model.parameters())
    try:
        try_on(model)
    except torch.OutOfMemoryError:
        assert fails
    assert Spy.steps == 2
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))
    assert all(parameter.grad is None and parameter.device == CPU for parameter in parameters)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)


def test_the_trial_would_have_changed_the_weights(monkeypatch):
    """Or else it tells nothing about memory."""
    monkeypatch.setattr(trial, "_restored", lambda model, device: torch.random.fork_rng(devices=[]))
    model = Conv3D(num_classes=2)
    before = state_of(model)
    try_on(model)
    assert not any(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_a_compiled_model_is_compiled_for_training_and_not_for_the_trial():
    model, compiled = Conv3D(num_classes=2), []
    model._compiled_call_impl = lambda *args: compiled.append(args)
    kept = model._compiled_call_impl
    try_on(model)
    assert not compiled
    assert model._compiled_call_impl is kept


@pytest.mark.parametrize("message", ["cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED"])
def test_libraries_say_in_their_own_words_that_memory_is_short(message):
    def step(batch_size):
        if batch_size > 10:
            raise RuntimeError(message)

    assert halve_until_it_fits(40, step) == 10


def test_another_error_is_no_lack_of_memory():
    def step(batch_size):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        halve_until_it_fits(8, step)


def test_what_a_failed_step_held_is_free_before_the_next_is_tried():
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
