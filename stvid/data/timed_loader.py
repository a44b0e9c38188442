"""A data loader that measures how long the computation waits for it, on a CPU and on a GPU."""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader


class TimedLoader(DataLoader):
    """A DataLoader that measures how long the computation waited for batches."""

    @property
    def waited(self) -> float:
        """Seconds over all batches so far, including the first of an epoch, but without starting the workers.

        This synchronises with the GPU.
        """
        return self._clock.read()

    @property
    def waited_so_far(self) -> float:
        """The same for the work that the GPU has finished; this does not synchronise."""
        return self._clock.seconds

    @functools.cached_property
    def _clock(self) -> IdleClock:
        return IdleClock()

    def __iter__(self) -> Iterator:  # type: ignore[override] # torch promises a private class
        return self._timed(super().__iter__())

    def _timed(self, batches: Iterator) -> Iterator:
        while True:
            self._clock.start()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self._clock.stop()
            yield batch


class IdleClock:
    """Sums the time between `start` and `stop` in which nothing was computed.

    A GPU continues its queued work while this process waits. With CUDA, the time is therefore measured between two
    events on its stream: it is zero for a batch that arrives before the GPU has finished the previous one.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.events: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    def start(self) -> None:
        self.began = _cuda_event() if torch.cuda.is_initialized() else time.perf_counter()

    def stop(self) -> None:
        if isinstance(self.began, float):
            self.seconds += time.perf_counter() - self.began
            return
        self.events.append((self.began, _cuda_event()))
        while self.events[0][1].query() and len(self.events) > 1:  # finished events need not be kept
            self._add(*self.events.popleft())

    def read(self) -> float:
        """Seconds so far; synchronises with the GPU up to the last `stop`."""
        while self.events:
            self._add(*self.events.popleft())
        return self.seconds

    def _add(self, began: torch.cuda.Event, ended: torch.cuda.Event) -> None:
        ended.synchronize()
        self.seconds += began.elapsed_time(ended) / 1000


def _cuda_event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
