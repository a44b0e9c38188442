"""Facts about the machine at hand."""

from __future__ import annotations

import os
import re


def num_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores_per_process(num_processes: int | None = None) -> int:
    """CPU cores for each of several processes that work at the same time on this machine, at least 1.

    Args:
        num_processes: how many they are, this one included. None: those that torchrun, Slurm or `stvid.launch` started
            here together with this one; without any of these, this one is alone.
    """
    # Slurm may have bound each of its tasks to cores of its own, or all of them to the same ones.
    in_job = os.environ.get("SLURM_CPUS_ON_NODE", "")
    together = int(in_job) if in_job.isdecimal() else num_cores()
    return max(min(num_cores(), together // (num_processes or _num_started_here())), 1)


def _num_started_here() -> int:
    if count := os.environ.get("LOCAL_WORLD_SIZE"):
        return int(count)
    # of each node, such as "8(x2),4": eight tasks on two nodes and four on a third
    tasks = re.findall(r"(\d+)(?:\(x\d+\))?", os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    return max(map(int, tasks), default=1)
