"""Clips per second, the time spent waiting for data, and advice on how to reduce it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import pytorch_lightning as pl

MIN_WAITING_SHARE = 0.25  # share of the training time above which advice is given


class ThroughputMeter:
    """Measures clips, time and waiting of training in an epoch, from its construction to the last added batch.

    The time between `pause` and `resume` (validation within an epoch) does not count.

    Args:
        trainer: waiting is measured only if its `train_dataloader` is a `TimedLoader`.
    """

    def __init__(self, trainer: pl.Trainer):
        self.trainer, self.started, self.clips, self.seconds = trainer, time.perf_counter(), 0, 0.0
        self.waited_at_start = self._waited()

    def add(self, batch: Mapping) -> None:
        """Counts a batch that was trained on."""
        self.clips += len(batch["labels"]) * self.trainer.world_size
        self.seconds = time.perf_counter() - self.started

    def pause(self) -> None:
        self.pause_start = time.perf_counter()

    def resume(self) -> None:
        self.started += time.perf_counter() - self.pause_start

    @property
    def speed(self) -> float:
        """Clips per second of all processes together."""
        return self.clips / max(self.seconds, 1e-9)

    @property
    def waiting(self) -> float | None:
        """Share of the time, in [0, 1], in which this process had nothing to compute; None if it is not measured.

        Waits until the GPU has computed all batches.
        """
        return self._share(self._waited())

    @property
    def waiting_so_far(self) -> float | None:
        """Like `waiting`, for the batches that a GPU has computed so far; does not wait for the GPU."""
        return self._share(getattr(self.trainer.train_dataloader, "waited_so_far", None))

    def _share(self, waited: float | None) -> float | None:
        if waited is None or self.waited_at_start is None:
            return None
        return min((waited - self.waited_at_start) / max(self.seconds, 1e-9), 1.0)

    def _waited(self) -> float | None:
        return getattr(self.trainer.train_dataloader, "waited", None)


def data_bound_advice(
    share: float, *, num_workers: int, num_cores: int, num_threads: int, uses_features: bool
) -> str | None:
    """One line of advice on how to load data faster, or None if training waits for less than a quarter of the time.

    Args:
        share: share of the training time spent waiting for data, in [0, 1].
        num_workers: data loading workers; 0: the training process reads the videos.
        num_cores: CPU cores for this training process and its workers.
        num_threads: CPU threads of the training process; 0 if an accelerator trains.
        uses_features: training reads stored features, no videos.
    """
    if share < MIN_WAITING_SHARE:
        return None
    percent = f"{100 * share:.0f} %"
    if uses_features:
        return (
            f"data-bound {percent}: training waits for stored features {percent} of the time. The training process "
            "reads them, so more workers would not help; a faster disk might"
        )
    head = f"data-bound {percent}: training waits for videos {percent} of the time;"
    workers, threads = _balance(share, num_workers=num_workers, num_cores=num_cores, num_threads=num_threads)
    cores = "the one core" if num_cores == 1 else f"the {num_cores} cores"
    if workers > num_workers:
        set_threads = f"OMP_NUM_THREADS={threads} and " if threads < num_threads else ""
        now = f"now {num_threads} threads and {num_workers} workers" if set_threads else f"now {num_workers}"
        return (
            f"{head} more workers: {set_threads}data.num_workers={workers} ({now}, on {cores}), "
            "or smaller files: stvid prepare"
        )
    work = "reading and training keep" if num_threads else "reading keeps"
    return (
        f"{head} {work} {cores} busy, so more workers would not help. "
        "Smaller files would (stvid prepare), or fewer augmentations (augment=none)"
    )


def _balance(share: float, *, num_workers: int, num_cores: int, num_threads: int) -> tuple[int, int]:
    """Number of workers and of training threads that would reduce the waiting.

    W workers are always busy, and training computes for `1 - share` of the time, so W / (1 - share) workers would keep
    up with it; the number of cores is the limit. When training on the CPU, the cores are divided in proportion to the
    work: if a worker uses the core of one of several threads, all other threads wait (see `set_up_cpu`). A
    single thread may share its core if it is busy for at most half of the time.
    """
    reading, training = num_workers or share, (1 - share) * num_threads  # busy cores
    threads = min(num_threads, max(1, round(num_cores * training / (reading + training))))
    can_share_core = threads == 1 < num_cores and training <= 0.5
    free_cores = num_cores if can_share_core else num_cores - threads
    computing = max(1 - share, 1e-3)
    needed = num_workers / computing if num_workers else share / computing
    return min(math.ceil(needed - 1e-9), free_cores), threads
