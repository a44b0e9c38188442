from pathlib import Path

import pytest
import torch

from stvid import device as hardware
from stvid.errors import InputError


@pytest.fixture
def machine(monkeypatch):
    """A machine with the given capabilities."""

    def make(*, cuda=None, fast_cpu=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda is not None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        monkeypatch.setattr(hardware, "cpu_has_fast_bf16", lambda: fast_cpu)

    return make


@pytest.mark.parametrize(
    ("found", "accelerator", "expected"),
    [
        ({"cuda": (9, 0)}, "auto", "bf16-mixed"),
        ({"cuda": (7, 5)}, "gpu", "32-true"),
        ({"cuda": (9, 0)}, "cpu", "32-true"),
        ({"fast_cpu": True}, "auto", "bf16-mixed"),
        ({"fast_cpu": False}, "cpu", "32-true"),
    ],
)
def test_auto_is_bf16_where_the_hardware_is_fast_at_it(machine, found, accelerator, expected):
    machine(**found)
    assert hardware.resolve_precision("auto", accelerator) == expected


def test_a_given_precision_is_kept_and_a_strange_one_told():
    assert hardware.resolve_precision("16-mixed", "gpu") == "16-mixed"
    assert hardware.resolve_precision(16, "gpu") == "16-mixed"
    with pytest.raises(InputError, match="bf16-true.*bf16-mixed"):
        hardware.resolve_precision("bf16-true", "gpu")


@pytest.mark.parametrize(
    ("found", "device", "trained", "expected"),
    [
        ({"fast_cpu": True}, "cpu", "bf16-mixed", "bf16-mixed"),
        ({"fast_cpu": False}, "cpu", "bf16-mixed", "32-true"),  # trained on a GPU, used on a laptop
        ({"fast_cpu": True}, "cpu", "16-mixed", "32-true"),
        ({"cuda": (7, 5)}, "cuda", "bf16-mixed", "32-true"),
        ({"cuda": (7, 5)}, "cuda", "16-mixed", "16-mixed"),
        ({"cuda": (9, 0)}, "cuda", "32-true", "32-true"),
        ({"cuda": (9, 0)}, "cuda", "auto", "bf16-mixed"),  # a run of an older version
    ],
)
def test_a_model_answers_in_its_training_s_precision_where_that_is_fast(machine, found, device, trained, expected):
    machine(**found)
    assert hardware.inference_precision(trained, device) == expected


def test_a_cpu_is_fast_at_bf16_where_the_kernel_says_so():
    flags = Path("/proc/cpuinfo")
    if not flags.exists():
        pytest.skip("no /proc/cpuinfo")
    told = set(flags.read_text().split())
    assert hardware.cpu_has_fast_bf16() == bool(told & {"avx512_bf16", "amx_tile"})


def test_half_of_the_cores_compute_unless_the_user_says_otherwise(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(hardware, "num_cores", lambda: 2)
    try:
        torch.set_num_threads(2)
        hardware.limit_cpu_threads("cuda")
        assert torch.get_num_threads() == 2
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        hardware.limit_cpu_threads("cpu")
        assert torch.get_num_threads() == 2
        monkeypatch.delenv("OMP_NUM_THREADS")
        hardware.limit_cpu_threads("cpu")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
