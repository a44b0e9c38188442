"""Clips per second, waiting for data, and what would help against it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import pytorch_lightning as pl

WORTH_TELLING = 0.25  # share of the training time


class ThroughputMeter:
    """Clips, time and waiting of an epoch's training part, from when it is made to the last batch that was added.

    Time between `pause` and `go_on` (validation in the middle of an epoch) does not count.

    Args:
        trainer: whose `train_dataloader` may be a `TimedLoader`; without one, waiting is not known.
    """

    def __init__(self, trainer: pl.Trainer):
        self.trainer, self.started, self.clips, self.seconds = trainer, time.perf_counter(), 0, 0.0
        self.waited_before = self._waited()

    def add(self, batch: Mapping) -> None:
        """A batch has been trained on."""
        self.clips += len(batch["labels"]) * self.trainer.world_size
        self.seconds = time.perf_counter() - self.started

    def pause(self) -> None:
        self.pause_began = time.perf_counter()

    def go_on(self) -> None:
        self.started += time.perf_counter() - self.pause_began

    @property
    def speed(self) -> float:
        """Clips per second, of all processes together."""
        return self.clips / max(self.seconds, 1e-9)

    @property
    def waiting(self) -> float | None:
        """Share of the time, in [0, 1], in which this process had nothing to compute; None where it is not known.

        A GPU is waited for until it has computed all batches.
        """
        return self._share(self._waited())

    @property
    def waiting_so_far(self) -> float | None:
        """The same of what a GPU has computed by now, without waiting for it."""
        return self._share(getattr(self.trainer.train_dataloader, "waited_so_far", None))

    def _share(self, waited: float | None) -> float | None:
        if waited is None or self.waited_before is None:
            return None
        return min((waited - self.waited_before) / max(self.seconds, 1e-9), 1.0)

    def _waited(self) -> float | None:
        return getattr(self.trainer.train_dataloader, "waited", None)


def advice(share: float, *, num_workers: int, num_cores: int, num_threads: int, stored: bool) -> str | None:
    """One line that says what would help, or None where training hardly waits.

    Args:
        share: of the training time spent waiting, in [0, 1].
        num_workers: processes that read videos; 0: the training process itself does.
        num_cores: CPU cores for this training process and its readers.
        num_threads: with which the CPU trains; 0 where an accelerator does.
        stored: features come from a store; no video is read.
    """
    if share < WORTH_TELLING:
        return None
    percent = f"{100 * share:.0f} %"
    if stored:
        return (
            f"data-bound {percent}: training waits for stored features {percent} of the time. They are read by the "
            "training process and little is computed on them, so more workers would not help; a faster disk might"
        )
    head = f"data-bound {percent}: training waits for videos {percent} of the time;"
    workers, threads = _balanced(share, num_workers=num_workers, num_cores=num_cores, num_threads=num_threads)
    cores = "the one core" if num_cores == 1 else f"the {num_cores} cores"
    if workers > num_workers:
        fewer = f"OMP_NUM_THREADS={threads} and " if threads < num_threads else ""
        now = f"now {num_threads} threads and {num_workers} workers" if fewer else f"now {num_workers}"
        return (
            f"{head} more workers: {fewer}data.num_workers={workers} ({now}, on {cores}), "
            "or smaller files: stvid prepare"
        )
    work = "reading and training keep" if num_threads else "reading keeps"
    return (
        f"{head} {work} {cores} busy, so more workers would not help. "
        "Smaller files would (stvid prepare), or fewer augmentations (augment=none)"
    )


def _balanced(share: float, *, num_workers: int, num_cores: int, num_threads: int) -> tuple[int, int]:
    """Processes that read, and threads that train, with which there would be less waiting.

    Readers are busy all the time and training is for `1 - share` of it, so W / (1 - share) readers would keep up with
    training; there are only the cores, though. Where the CPU trains, these are split as the work is: a reader on the
    core of one of several threads makes all the others wait (see `leave_cores_to_readers`). A single thread waits for
    nobody and may share its core, if it leaves half of it idle.
    """
    reading, training = num_workers or share, (1 - share) * num_threads  # cores at work
    threads = min(num_threads, max(1, round(num_cores * training / (reading + training))))
    shares = threads == 1 < num_cores and training <= 0.5
    free = num_cores if shares else num_cores - threads
    computing = max(1 - share, 1e-3)
    needed = num_workers / computing if num_workers else share / computing
    return min(math.ceil(needed - 1e-9), free), threads
