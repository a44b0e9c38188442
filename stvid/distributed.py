"""Several processes on one task: rank, world size, all-reduce, all-gather, and launching local processes."""

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
    """Joins the processes that `launch_processes` or torchrun has started, if any; each has its own GPU if there are.

    Yields whether this is the main process (rank 0), the only one that prints and writes.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield True
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    dist.init_process_group("gloo", timeout=datetime.timedelta(days=1))  # rank 0 may decode for hours alone
    try:
        yield dist.get_rank() == 0
    finally:
        dist.destroy_process_group()


def is_distributed() -> bool:
    """Whether this process is one of several (WORLD_SIZE above 1)."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def launch_processes(run: Callable[[], None], num_processes: int) -> int:
    """Calls a function in several processes at once, which `init_distributed` then joins; only rank 0 prints.

    Args:
        run: must be picklable; may raise SystemExit.
        num_processes: at least 2.

    Returns:
        The exit code of rank 0, or of the process that failed first; the others are then terminated.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common |= {name: str(num_processes) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")}
    forks = "fork" in multiprocessing.get_all_start_methods()  # forked processes need not import anything again
    context = multiprocessing.get_context("fork" if forks else "spawn")
    with tempfile.TemporaryDirectory() as folder:
        words = Path(folder) / "words.txt"
        started = [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(num_processes)]
        processes = [context.Process(target=_one, args=(run, environment, words)) for environment in started]
        for process in processes:
            process.start()
        code = _ended(processes)
        if code and processes[0].exitcode != code:  # only rank 0 prints; show what the failed process printed
            sys.stderr.write(words.read_text(errors="replace"))
    return code


def _one(run: Callable[[], None], environment: dict[str, str], words: Path) -> None:
    os.environ.update(environment)
    if environment["RANK"] == "0":
        run()
        return
    with words.open("a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        logging.disable(logging.WARNING)
        run()


def _ended(processes: Sequence[BaseProcess]) -> int:
    try:
        while any(process.is_alive() for process in processes):
            if failed := [process.exitcode for process in processes if process.exitcode]:
                return failed[0]
            time.sleep(0.05)
        return max((process.exitcode for process in processes), key=abs)
    finally:
        for process in processes:
            process.terminate()
            process.join()


def get_world_size() -> int:
    """Number of processes that work together; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def get_rank() -> int:
    """Rank of this process, from 0."""
    return dist.get_rank() if get_world_size() > 1 else 0


def all_reduce(values: Tensor, *, take: str = "sum") -> Tensor:
    """Elementwise `sum`, `min` or `max` over all processes; with one process, the values themselves."""
    if get_world_size() == 1:
        return values
    values = values.detach().clone()
    dist.all_reduce(values, op={"sum": dist.ReduceOp.SUM, "min": dist.ReduceOp.MIN, "max": dist.ReduceOp.MAX}[take])
    return values


def all_gather_object(content: object) -> list:
    """The objects of all processes, ordered by rank."""
    everybody = [None] * get_world_size()
    if len(everybody) == 1:
        return [content]
    dist.all_gather_object(everybody, content)
    return everybody
