"""Signals that stop a run: it finishes the current step, writes a checkpoint and exits; with Slurm it can requeue."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from stvid.distributed import all_reduce, get_world_size
from stvid.errors import InputError, train_command

log = logging.getLogger(__name__)
# Slurm sends SIGUSR1 with --signal=USR1@90; Windows does not have it
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))


@contextlib.contextmanager
def keep_interrupts() -> Iterator[None]:
    """Raises the KeyboardInterrupt that Lightning turns into an exit with code 1."""
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None
        raise


class Preemption(Callback):
    """Receives signals during training; a second signal ends the run immediately.

    Before and after the training, the handlers from before `trainer.fit` are in effect.

    Args:
        requeue: put the Slurm job back into the queue before the exit.

    Raises:
        InputError: `requeue` outside of a Slurm job.
    """

    def __init__(self, *, requeue: bool = False):
        if requeue and "SLURM_JOB_ID" not in os.environ:
            raise InputError("requeue=true (trainer=slurm) needs a Slurm job; SLURM_JOB_ID is not set")
        self.requeue = requeue
        self.received = 0  # signal that this process received; 0: none
        self.agreed = 0  # signal that all processes act on; 0: none
        self._old_handlers: dict[int, Any] = {}

    def setup(self, trainer: pl.Trainer, task: pl.LightningModule, stage: str) -> None:
        # later, Lightning sets handlers of its own, which must not stay after the training
        handlers = {number: signal.getsignal(number) for number in SIGNALS}
        self._old_handlers = {number: handler for number, handler in handlers.items() if handler is not None}

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        task.stop_signal = lambda: self.received  # type: ignore[assignment] # a `ClassificationTask`
        if threading.current_thread() is not threading.main_thread():  # only that can set handlers
            self._old_handlers = {}
        for number in self._old_handlers:
            signal.signal(number, self._handle)

    def teardown(self, trainer: pl.Trainer, task: pl.LightningModule, stage: str) -> None:
        self._restore_handlers()

    def on_exception(self, trainer: pl.Trainer, task: pl.LightningModule, exception: BaseException) -> None:
        self._restore_handlers()

    def is_requested(self, task: pl.LightningModule) -> bool:
        """Whether the run must stop: any process had received a signal when the step began (one process: by now)."""
        self.agreed = self.received if get_world_size() == 1 else task.agreed_signal  # type: ignore[assignment]
        return self.agreed != 0

    def is_requested_anywhere(self, task: pl.LightningModule) -> bool:
        """Whether any process has received a signal by now. Every process must call this."""
        self.agreed = int(all_reduce(torch.tensor(float(self.received), device=task.device), op="max"))
        return self.agreed != 0

    def exit(self, trainer: pl.Trainer, run: Path) -> None:
        """Ends the program with exit code 128 + signal; the checkpoint in the run folder is already written."""
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            name = signal.Signals(self.agreed).name
            log.info("stopped by %s; saved at step %d in %s", name, trainer.global_step, run)
            if self.requeue:
                _requeue()
            else:
                log.info("resume with   %s", train_command(f"resume={run}"))
        raise SystemExit(128 + self.agreed)

    def _handle(self, number: int, frame: object) -> None:
        if self.received:
            self._restore_handlers()
            signal.raise_signal(number)
        self.received = number

    def _restore_handlers(self) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        self._old_handlers = {}


def _requeue() -> None:
    """Puts this Slurm job back into the queue; Slurm increments SLURM_RESTART_COUNT, the run folder stays the same."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        result = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    except OSError as error:
        log.error("Slurm could not requeue job %s: %s", job, error)
        return
    if result.returncode:
        log.error("Slurm could not requeue job %s: %s", job, result.stderr.strip())
    else:
        log.info("job %s is back in the queue", job)
