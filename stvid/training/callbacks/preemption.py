"""A run that is told to stop: it finishes the step it is at, saves, and leaves; under Slurm it asks to come back."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from stvid.distributed import all_reduce, get_world_size
from stvid.errors import InputError, train_command

log = logging.getLogger(__name__)
# SIGUSR1 is what Slurm is told to send (--signal=USR1@90); Windows has no such signal
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))


class Preemption(Callback):
    """Takes note of signals while a run trains; a second one ends it at once.

    Args:
        requeue: put the Slurm job back into the queue before leaving.

    Raises:
        InputError: `requeue`, and this is no job of Slurm's.
    """

    def __init__(self, *, requeue: bool = False):
        if requeue and "SLURM_JOB_ID" not in os.environ:
            raise InputError("requeue=true (trainer=slurm) is for jobs of Slurm; here SLURM_JOB_ID is not set")
        self.requeue = requeue
        self.received = 0  # signal, by this process; 0: none
        self.agreed = 0  # by all of them
        self._before: dict[int, object] = {}

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        task.stop_signal = lambda: self.received
        try:
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        except ValueError:  # not in the main thread, where signals are no business of ours
            self._before = {}

    def teardown(self, trainer: pl.Trainer, task: pl.LightningModule, stage: str) -> None:
        self._restore()

    def on_exception(self, trainer: pl.Trainer, task: pl.LightningModule, exception: BaseException) -> None:
        self._restore()

    def wanted(self, task: pl.LightningModule) -> bool:
        """Whether this process has been told to stop; of several, whether any had been when the step began."""
        self.agreed = self.received if get_world_size() == 1 else task.agreed_signal
        return self.agreed != 0

    def wanted_by_any(self, task: pl.LightningModule) -> bool:
        """Whether any process has been told to stop by now; all of them must ask."""
        self.agreed = int(all_reduce(torch.tensor(float(self.received), device=task.device), take="max"))
        return self.agreed != 0

    def leave(self, trainer: pl.Trainer, run: Path) -> None:
        """Ends the program as the signal asked, once the checkpoint is written into the run folder."""
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            name = signal.Signals(self.agreed).name
            log.info("told to stop (%s); saved at step %d in %s", name, trainer.global_step, run)
            if self.requeue:
                _requeue()
            else:
                log.info("go on with   %s", train_command(f"resume={run}"))
        raise SystemExit(128 + self.agreed)

    def _note(self, number: int, frame: object) -> None:
        if self.received:
            self._restore()
            signal.raise_signal(number)
        self.received = number

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def _requeue() -> None:
    """Slurm starts the same job again, with SLURM_RESTART_COUNT one higher, in the same run folder."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    except OSError as error:
        log.error("Slurm could not requeue job %s: %s", job, error)
        return
    if done.returncode:
        log.error("Slurm could not requeue job %s: %s", job, done.stderr.strip())
    else:
        log.info("job %s is back in the queue", job)
