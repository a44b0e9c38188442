"""The batch size of a run: from the estimate, confirmed on a GPU by trial steps that leave the model unchanged."""

import logging
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from stvid.clip import ClipSpec
from stvid.cost import planning
from stvid.errors import InputError
from stvid.models.cnn_lstm import CNNLSTM
from stvid.models.conv3d import Conv3D
from stvid.models.layers import checkpoint_stages
from stvid.preprocess import channels_last
from stvid.training import batch_size
from stvid.training.batch_size import halve_until_it_fits, plan_batch, try_training
from stvid.training.optim import OptimizerFactory

CPU = torch.device("cpu")
CLIP = ClipSpec(num_frames=4, size=32)
GB = 2**30


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


@pytest.fixture
def run(monkeypatch, caplog):
    """`run(size, free)`: `plan_batch` for a small model on a device with `free` bytes; returns size and log."""
    caplog.set_level(logging.INFO, logger="stvid")

    def planned_batch(size, free, *, num_videos=1000, num_processes=1, model=None, device="cpu", try_step=None):
        for module in (planning, batch_size):
            monkeypatch.setattr(module, "free_bytes", lambda device: free)
        model = Conv3D(num_classes=2) if model is None else model
        optimization = OptimizerFactory(optimizer=torch.optim.AdamW, lr=1e-3)
        data = SimpleNamespace(
            batch_size=size,
            clip=ClipSpec(num_frames=4, size=32),
            manifest=SimpleNamespace(class_names=("a", "b")),
            train=range(num_videos),
        )
        device = torch.device(device)
        size = plan_batch(model, optimization, data, device, "32-true", num_processes, try_step=try_step)
        return size, caplog.text

    return planned_batch


def test_a_run_logs_its_cost_and_keeps_its_batch_size(run):
    size, text = run(16, 100 * GB)
    assert size == 16
    assert "a training step on 16 clips takes" in text
    assert "WARNING" not in text


def test_a_run_that_does_not_fit_gets_a_warning_with_the_batch_that_does(run):
    size, text = run(64, 12 * 2**20)
    assert size == 64
    fits = int(text.split("data.batch_size=")[1])
    assert 2 <= fits < 64


class Foreign(Conv3D):
    """A user's model that can be trained but not simulated."""

    def __init__(self, step):
        super().__init__(num_classes=2)
        self.step = step

    def forward(self, clips, lengths=None):
        return super().forward(clips, lengths) + self.step(clips)


def test_a_model_that_cannot_be_simulated_is_trained_without_an_estimate(run):
    size, text = run(16, 100 * GB, model=Foreign(lambda clips: clips.sum().item()))
    assert size == 16
    assert "cost not known: the cost of Foreign cannot be estimated" in text
    assert "Traceback" not in text
    with pytest.raises(InputError, match="cannot be estimated"):
        run("auto", 100 * GB, model=Foreign(lambda clips: clips.sum().item()))


def test_an_error_in_a_simulation_is_shown_with_its_traceback(run):
    size, text = run(16, 100 * GB, model=Foreign(lambda clips: float(clips.detach().numpy().sum())))
    assert size == 16
    assert "cost not known" in text
    assert "Traceback" in text
    with pytest.raises(RuntimeError, match="numpy"):
        run("auto", 100 * GB, model=Foreign(lambda clips: float(clips.detach().numpy().sum())))


def test_auto_takes_the_batch_that_fits_at_most_256_and_at_most_the_videos(run):
    assert run("auto", 100 * GB)[0] == 256
    assert run("auto", 100 * GB, num_videos=40)[0] == 40
    assert 2 <= run("auto", 12 * 2**20)[0] < 40
    assert run("auto", None)[0] == 16
    with pytest.raises(InputError, match="does not work with 2 processes"):
        run("auto", 100 * GB, num_processes=2)
    with pytest.raises(InputError, match="data.batch_size=auto: a training step on 2 clips needs"):
        run("auto", 2**20)


def memory_for(limit):
    """A training step that runs out of memory with more than `limit` clips, and the list of sizes that it gets."""
    tried = []

    def step(size):
        tried.append(size)
        if size > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")

    return step, tried


@pytest.mark.parametrize(
    ("limit", "sizes"), [(256, [256]), (100, [256, 128, 64]), (2, [256, 128, 64, 32, 16, 8, 4, 2])]
)
def test_auto_is_tried_on_a_gpu_and_halved_until_it_fits(run, limit, sizes):
    step, tried = memory_for(limit)
    size, text = run("auto", 100 * GB, device="cuda", try_step=step)
    assert (size, tried) == (sizes[-1], sizes)
    assert f"data.batch_size=auto: {size} clips" in text


def test_not_even_two_clips_on_a_gpu_is_an_input_error(run):
    with pytest.raises(InputError, match="with 2 clips runs out of memory on cuda"):
        run("auto", 100 * GB, device="cuda", try_step=memory_for(1)[0])


@pytest.mark.parametrize(("size", "device"), [(16, "cuda"), ("auto", "cpu")])
def test_a_number_and_a_cpu_need_no_trial(run, size, device):
    step, tried = memory_for(0)
    run(size, 100 * GB, device=device, try_step=step)
    assert not tried
