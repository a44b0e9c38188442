"""Device, precision, threads and cores, on simulated machines."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stvid import device
from stvid.errors import InputError


@pytest.fixture
def machine(monkeypatch):
    """A machine with the given capabilities."""

    def make(*, cuda=None, fast_cpu=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda is not None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        monkeypatch.setattr(device, "cpu_has_fast_bf16", lambda: fast_cpu)

    return make


@pytest.mark.parametrize(
    ("capabilities", "accelerator", "expected"),
    [
        ({"cuda": (9, 0)}, "auto", "bf16-mixed"),
        ({"cuda": (7, 5)}, "gpu", "32-true"),
        ({"cuda": (9, 0)}, "cpu", "32-true"),
        ({"fast_cpu": True}, "auto", "bf16-mixed"),
        ({"fast_cpu": False}, "cpu", "32-true"),
    ],
)
def test_auto_is_bf16_where_the_hardware_is_fast_at_it(machine, capabilities, accelerator, expected):
    machine(**capabilities)
    assert device.resolve_precision("auto", accelerator) == expected


def test_a_given_precision_is_kept_and_an_unknown_one_is_an_input_error():
    assert device.resolve_precision("16-mixed", "gpu") == "16-mixed"
    assert device.resolve_precision(16, "gpu") == "16-mixed"
    with pytest.raises(InputError, match="bf16-true.*bf16-mixed"):
        device.resolve_precision("bf16-true", "gpu")


@pytest.mark.parametrize(
    ("capabilities", "device_type", "trained", "expected"),
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
def test_inference_uses_the_precision_of_training_if_the_device_is_fast_in_it(
    machine, capabilities, device_type, trained, expected
):
    machine(**capabilities)
    assert device.inference_precision(trained, device_type) == expected


def test_fast_bf16_agrees_with_the_flags_of_the_kernel():
    flags = Path("/proc/cpuinfo")
    if not flags.exists():
        pytest.skip("no /proc/cpuinfo")
    cpu_flags = set(flags.read_text().split())
    assert device.cpu_has_fast_bf16() == bool(cpu_flags & {"avx512_bf16", "amx_tile"})


def test_torch_uses_half_of_the_cores_unless_omp_num_threads_is_set(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(device, "num_cores", lambda: 2)
    try:
        torch.set_num_threads(2)
        device.set_up_cpu("cuda")
        assert torch.get_num_threads() == 2
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        device.set_up_cpu("cpu")
        assert torch.get_num_threads() == 2
        monkeypatch.delenv("OMP_NUM_THREADS")
        device.set_up_cpu("cpu")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


PAGE_FAULTS = """
import resource, sys, torch
from stvid.device import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def faults(size):
    torch.ones(size, dtype=torch.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(40):
        torch.ones(size, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults(2**26))
"""


GLIBC = [int(number) for number in platform.libc_ver()[1].split(".")] if platform.libc_ver()[0] == "glibc" else []


def test_an_older_glibc_gets_its_largest_threshold(monkeypatch):
    calls = []

    class Old:
        def mallopt(self, option, value):
            calls.append((option, value))
            return option != -3 or value <= 2**25

    monkeypatch.setattr(device.sys, "platform", "linux")
    monkeypatch.setattr(device.ctypes, "CDLL", lambda name: Old())
    for variable in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
        monkeypatch.delenv(variable, raising=False)
    device.keep_freed_memory()
    assert calls == [(-3, 2**28), (-3, 2**25), (-1, 2**30)]


@pytest.mark.skipif(GLIBC < [2, 35], reason="only glibc has the options; older ones map tensors above 32 MiB anew")
def test_the_memory_of_freed_tensors_stays(monkeypatch):
    for variable in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
        monkeypatch.delenv(variable, raising=False)

    def faults(mode):
        done = subprocess.run([sys.executable, "-c", PAGE_FAULTS, mode], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert faults("keep") < faults("leave") / 5
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1000000")  # the user's own
    assert faults("keep") > 1000


VARIABLES = ("LOCAL_WORLD_SIZE", "SLURM_STEP_TASKS_PER_NODE", "SLURM_CPUS_ON_NODE")


@pytest.fixture
def cores(monkeypatch):
    """Sets the cores of this process and the environment variables of its launcher."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)

    def set_cores(number: int, **variables: str) -> None:
        monkeypatch.setattr(device, "num_cores", lambda: number)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_cores


@pytest.mark.parametrize(
    ("number", "variables", "expected"),
    [
        (16, {}, 16),
        (16, {"LOCAL_WORLD_SIZE": "4"}, 4),
        (2, {"LOCAL_WORLD_SIZE": "8"}, 1),
        (64, {"SLURM_STEP_TASKS_PER_NODE": "8", "SLURM_CPUS_ON_NODE": "64"}, 8),  # all tasks on the same cores
        (8, {"SLURM_STEP_TASKS_PER_NODE": "8", "SLURM_CPUS_ON_NODE": "64"}, 8),  # each task bound to its own cores
        (64, {"SLURM_STEP_TASKS_PER_NODE": "4", "SLURM_CPUS_ON_NODE": "16"}, 4),  # part of the machine, tasks not bound
        (64, {"SLURM_STEP_TASKS_PER_NODE": "4(x2),8", "SLURM_CPUS_ON_NODE": "64"}, 8),
        (64, {"SLURM_STEP_TASKS_PER_NODE": "1(x12)", "SLURM_CPUS_ON_NODE": "64"}, 64),
        (64, {"SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_CPUS_ON_NODE": "64", "LOCAL_WORLD_SIZE": "8"}, 8),  # torchrun
    ],
)
def test_processes_of_a_launcher_share_the_cores(cores, number, variables, expected):
    cores(number, **variables)
    assert device.cores_per_process() == expected


def test_a_given_number_of_processes_overrides_the_launcher(cores):
    cores(16, LOCAL_WORLD_SIZE="2")
    assert [device.cores_per_process(number) for number in (1, 2, 8, 32)] == [16, 8, 2, 1]


def test_a_device_that_this_machine_lacks_is_told():
    assert device.resolve_device("cpu") == torch.device("cpu")
    assert device.resolve_device(None) == device.default_device()
    with pytest.raises(InputError, match="--device cuda:99: PyTorch finds no such device"):
        device.resolve_device("cuda:99")
