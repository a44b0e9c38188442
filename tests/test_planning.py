"""Free memory, the largest batch that fits, and the batch size of a run."""

import logging
from types import SimpleNamespace

import pytest
import torch

from stvid.clip import ClipSpec
from stvid.cost import planning
from stvid.cost.planning import _cgroup_free_bytes, free_bytes, largest_batch
from stvid.errors import InputError
from stvid.models.conv3d import Conv3D
from stvid.training import batch_size as batch_size_module
from stvid.training.batch_size import plan_batch
from stvid.training.optim import OptimizerFactory

GB = 2**30


def test_no_larger_batch_fits_even_if_the_peak_has_a_kink():
    def peak(batch: int) -> int:
        return 1_000 + 10 * batch + max(0, 30 * (batch - 20))

    for budget in (1_020, 1_035, 1_190, 1_500, 3_000):
        size = largest_batch(peak, budget=budget, limit=200)
        assert peak(size) <= budget
        assert size == 200 or peak(size + 1) > budget
    assert largest_batch(peak, budget=1_019) == 0
    assert largest_batch(lambda size: size, budget=1e9) == 256


def test_free_memory_respects_the_limit_of_a_container(tmp_path):
    membership = tmp_path / "cgroup"
    membership.write_text("0::/job/step\n")
    folder = tmp_path / "job"
    (folder / "step").mkdir(parents=True)
    (folder / "step" / "memory.max").write_text("max\n")
    (folder / "step" / "memory.current").write_text("5\n")
    (folder / "memory.max").write_text("1000\n")
    (folder / "memory.current").write_text("600\n")
    (folder / "memory.stat").write_text("anon 500\ninactive_file 100\n")
    assert _cgroup_free_bytes(tmp_path, membership) == 1000 - 600 + 100
    assert _cgroup_free_bytes(tmp_path, tmp_path / "nothing") is None
    assert free_bytes(torch.device("meta")) is None


@pytest.fixture
def run(monkeypatch, caplog):
    """`run(batch_size, free)`: `plan_batch` for a small model on a device with `free` bytes; returns size and log."""
    caplog.set_level(logging.INFO, logger="stvid")

    def planned_batch(batch_size, free, *, num_videos=1000, num_processes=1, model=None, device="cpu", try_step=None):
        for module in (planning, batch_size_module):
            monkeypatch.setattr(module, "free_bytes", lambda device: free)
        model = Conv3D(num_classes=2) if model is None else model
        optimization = OptimizerFactory(optimizer=torch.optim.AdamW, lr=1e-3)
        data = SimpleNamespace(
            batch_size=batch_size,
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
    with pytest.raises(InputError, match="2 processes must have the same batch size"):
        run("auto", 100 * GB, num_processes=2)
    with pytest.raises(InputError, match="data.batch_size=auto: a training step on 2 clips needs"):
        run("auto", 2**20)


def memory_for(most):
    """A training step that runs out of memory above so many clips, and the sizes it was tried with."""
    tried = []

    def step(batch_size):
        tried.append(batch_size)
        if batch_size > most:
            raise torch.OutOfMemoryError("CUDA out of memory")

    return step, tried


@pytest.mark.parametrize(("most", "sizes"), [(256, [256]), (100, [256, 128, 64]), (2, [256, 128, 64, 32, 16, 8, 4, 2])])
def test_auto_is_tried_on_a_gpu_and_halved_until_it_fits(run, most, sizes):
    step, tried = memory_for(most)
    size, text = run("auto", 100 * GB, device="cuda", try_step=step)
    assert (size, tried) == (sizes[-1], sizes)
    assert f"data.batch_size=auto takes {size} clips" in text


def test_where_nothing_fits_on_a_gpu_it_is_said(run):
    with pytest.raises(InputError, match="on 2 clips runs out of the memory of cuda"):
        run("auto", 100 * GB, device="cuda", try_step=memory_for(1)[0])


@pytest.mark.parametrize(("batch_size", "device"), [(16, "cuda"), ("auto", "cpu")])
def test_what_is_not_a_guess_about_a_gpu_is_not_tried(run, batch_size, device):
    step, tried = memory_for(0)
    run(batch_size, 100 * GB, device=device, try_step=step)
    assert not tried
