"""Multi-process execution: rank, world size, all-reduce, all-gather, and launching local processes."""

from __future__ import annotations

import contextlib
import datetime
import logging
import multiprocessing
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor


@contextlib.contextmanager
def init_distributed() -> Iterator[bool]:
    """Joins the process group if `launch_processes` or torchrun started this process. Each process selects one GPU.

    Yields whether this is the main process (rank 0). Only the main process prints and writes files.
    """
    if not is_distributed():
        yield True
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    dist.init_process_group("gloo", timeout=datetime.timedelta(days=1))  # only rank 0 may be busy, for hours
    try:
        yield dist.get_rank() == 0
    finally:
        dist.destroy_process_group()


def is_distributed() -> bool:
    """Whether a launcher started several processes (WORLD_SIZE above 1)."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def launch_processes(run: Callable[[], None], num_processes: int) -> int:
    """Calls a function in several local processes, which form a group with `init_distributed`. Only rank 0 prints.

    If one process fails, the others are terminated; if rank 0 did not fail itself, the output of the others is shown.

    Args:
        run: must be picklable; may raise SystemExit.
        num_processes: at least 2.

    Returns:
        The exit code of rank 0, or that of the first process that failed.
    """
    with socket.socket() as unused_port:
        unused_port.bind(("127.0.0.1", 0))
        port = str(unused_port.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common |= {name: str(num_processes) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")}
    can_fork = "fork" in multiprocessing.get_all_start_methods()  # a forked process imports nothing again
    context = multiprocessing.get_context("fork" if can_fork else "spawn")
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output.txt"
        environments = [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(num_processes)]
        processes = [
            context.Process(target=_run_process, args=(run, variables, output))  # type: ignore[attr-defined] # typeshed
            for variables in environments
        ]
        for process in processes:
            process.start()
        code = _wait_for_exit(processes)
        if code and processes[0].exitcode != code:
            sys.stderr.write(output.read_text(errors="replace"))
    return code


def _run_process(run: Callable[[], None], variables: dict[str, str], output: Path) -> None:
    """Runs in the new process; all ranks except 0 print into the file `output`."""
    os.environ.update(variables)
    if variables["RANK"] == "0":
        run()
        return
    with output.open("a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        logging.disable(logging.WARNING)
        run()


def _wait_for_exit(processes: Sequence[BaseProcess]) -> int:
    """The exit code; terminates all processes as soon as one has failed."""
    try:
        while any(process.is_alive() for process in processes):
            if failed := [process.exitcode for process in processes if process.exitcode]:
                return failed[0]
            time.sleep(0.05)
        return max((process.exitcode or 0 for process in processes), key=abs)
    finally:
        for process in processes:
            process.terminate()
            process.join()


def get_world_size() -> int:
    """Number of processes in the group; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_main_process() -> bool:
    """False in the other processes of a run, which Lightning, torchrun or Slurm starts, from their start on."""
    return all(int(os.environ.get(name, 0)) == 0 for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


def get_rank() -> int:
    """Rank of this process, counted from 0."""
    return dist.get_rank() if get_world_size() > 1 else 0


def all_reduce(values: Tensor, *, op: str = "sum") -> Tensor:
    """Elementwise `sum`, `min` or `max` over all processes, as a new tensor; with one process, `values` itself."""
    if get_world_size() == 1:
        return values
    values = values.detach().clone()
    dist.all_reduce(values, op={"sum": dist.ReduceOp.SUM, "min": dist.ReduceOp.MIN, "max": dist.ReduceOp.MAX}[op])
    return values


def all_gather_object(content: object) -> list:
    """The objects of all processes, ordered by rank."""
    if get_world_size() == 1:
        return [content]
    contents: list = [None] * get_world_size()
    dist.all_gather_object(contents, content)
    return contents
