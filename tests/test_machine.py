"""How many cores a process may count on, from what the launchers say."""

import os

import pytest

from stvid import device as machine
from stvid import distributed as launch

VARIABLES = ("LOCAL_WORLD_SIZE", "SLURM_STEP_TASKS_PER_NODE", "SLURM_CPUS_ON_NODE")


@pytest.fixture
def cores(monkeypatch):
    """Sets how many cores this process may use, and what its launcher says."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)

    def say(number: int, **variables: str) -> None:
        monkeypatch.setattr(machine, "num_cores", lambda: number)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return say


@pytest.mark.parametrize(
    ("number", "variables", "expected"),
    [
        (16, {}, 16),
        (16, {"LOCAL_WORLD_SIZE": "4"}, 4),
        (2, {"LOCAL_WORLD_SIZE": "8"}, 1),
        (64, {"SLURM_STEP_TASKS_PER_NODE": "8", "SLURM_CPUS_ON_NODE": "64"}, 8),  # all tasks on the same cores
        (8, {"SLURM_STEP_TASKS_PER_NODE": "8", "SLURM_CPUS_ON_NODE": "64"}, 8),  # each bound to its own
        (64, {"SLURM_STEP_TASKS_PER_NODE": "4", "SLURM_CPUS_ON_NODE": "16"}, 4),  # a part of the machine, not enforced
        (64, {"SLURM_STEP_TASKS_PER_NODE": "4(x2),8", "SLURM_CPUS_ON_NODE": "64"}, 8),
        (64, {"SLURM_STEP_TASKS_PER_NODE": "1(x12)", "SLURM_CPUS_ON_NODE": "64"}, 64),
        (64, {"SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_CPUS_ON_NODE": "64", "LOCAL_WORLD_SIZE": "8"}, 8),  # torchrun
    ],
)
def test_processes_that_were_started_together_share_the_cores(cores, number, variables, expected):
    cores(number, **variables)
    assert machine.cores_per_process() == expected


def test_who_knows_better_how_many_there_are_is_believed(cores):
    cores(16, LOCAL_WORLD_SIZE="2")
    assert [machine.cores_per_process(number) for number in (1, 2, 8, 32)] == [16, 8, 2, 1]


def _write_what_is_known() -> None:
    with open(os.environ["TOLD"], "a") as file:
        file.write(f"{machine.cores_per_process()} of {machine.num_cores()}\n")


def test_processes_of_one_command_know_of_each_other(tmp_path, monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TOLD", str(tmp_path / "told"))
    monkeypatch.setattr(machine, "num_cores", lambda: 6)
    assert launch.launch_processes(_write_what_is_known, 3) == 0
    assert (tmp_path / "told").read_text() == "2 of 6\n" * 3
