"""How long training stands still because a batch is not there yet."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from functools import cached_property

import torch
from torch.utils.data import DataLoader


class TimedLoader(DataLoader):
    """A DataLoader that knows for how long there was nothing to compute because a batch was not there yet."""

    @property
    def waited(self) -> float:
        """Seconds, of all batches so far: the first of an epoch too, but not the start of the processes.

        A GPU is waited for until it has come to the last batch.
        """
        return self._clock.read()

    @property
    def waited_so_far(self) -> float:
        """The same without what a GPU has not come to yet; it is not waited for."""
        return self._clock.seconds

    @cached_property
    def _clock(self) -> IdleClock:
        return IdleClock()

    def __iter__(self) -> Iterator:
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
    """Adds up the time between `start` and `stop` in which nothing was computed.

    A GPU goes on with what has been asked of it while this process waits, so where CUDA is at work the time is that
    between two events on its stream: it is zero for a batch that came before the GPU was done with the last one.
    """

    def __init__(self) -> None:
        self.seconds, self.events = 0.0, deque()

    def start(self) -> None:
        self.began = _cuda_event() if torch.cuda.is_initialized() else time.perf_counter()

    def stop(self) -> None:
        if isinstance(self.began, float):
            self.seconds += time.perf_counter() - self.began
            return
        self.events.append((self.began, _cuda_event()))
        while self.events[0][1].query() and len(self.events) > 1:  # what is over need not be kept
            self._add(*self.events.popleft())

    def read(self) -> float:
        """Seconds so far; a GPU is waited for until it has come to the last `stop`."""
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
