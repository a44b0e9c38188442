"""How fast an epoch goes, and how much of it is waiting."""

from __future__ import annotations

import time
from collections.abc import Mapping

import pytorch_lightning as pl


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
