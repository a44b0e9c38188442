"""Items of several clients in one call of the model: one thread, a time budget, a bounded queue."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")
log = logging.getLogger(__name__)


class QueueFull(Exception):
    """Too many items wait already; try again later."""


class BatchFailed(RuntimeError):
    """The call with this item failed because of a bug; the log has its traceback."""


@dataclass(frozen=True)
class _Job:
    function: Callable[[list], Sequence]
    item: Any
    key: Hashable
    size: int
    arrived: float
    future: Future = field(default_factory=Future)


class Batcher:
    """Collects items and gives them to a function together, in a thread of its own, which owns the model.

    Items go together if they have the same function and the same key. The oldest item decides: it waits for others at
    most `max_delay`, and not at all once there are `max_batch`. Items that were cancelled meanwhile are left out.

        batcher = Batcher(max_batch=16, max_delay=0.005, max_queue=64)
        batcher.start()
        future = batcher.submit(classify, clips, key=clips.shape[1:], size=len(clips))
        future.result()

    Args:
        max_batch: the sum of the items' sizes in a call; a larger item comes alone.
        max_delay: seconds.
        max_queue: items that wait.
        on_batch: called in the thread after each call, with the sum of sizes and the seconds it took.
    """

    def __init__(
        self,
        *,
        max_batch: int,
        max_delay: float,
        max_queue: int,
        on_batch: Callable[[int, float], object] = lambda size, seconds: None,
    ):
        self.max_batch, self.max_delay, self.max_queue = max_batch, max_delay, max_queue
        self.on_batch = on_batch
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._is_stopped = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Refuses new items, cancels those that wait, and waits for the call that is running."""
        with self._changed:
            self._is_stopped = True
            for job in self._jobs:
                job.future.cancel()
            self._jobs.clear()
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def __len__(self) -> int:
        return len(self._jobs)

    def submit(
        self, function: Callable[[list[T]], Sequence[R]], item: T, *, key: Hashable = None, size: int = 1
    ) -> Future[R]:
        """Puts an item into the queue.

        Args:
            function: items -> results, in the same order. It is called in the batcher's thread.
            item: what the function takes.
            key: only items with the same key go together, such as clips of the same shape.
            size: of the item, in units of `max_batch`.

        Returns:
            The item's result. It raises BatchFailed if the function raised an error. Cancel it to leave the queue.

        Raises:
            QueueFull: `max_queue` items wait, or the batcher is stopped.
        """
        job = _Job(function, item, (function, key), size, time.monotonic())
        with self._changed:
            if self._is_stopped:
                raise QueueFull("the service is stopping")
            if len(self._jobs) >= self.max_queue and not self._drop_cancelled():
                raise QueueFull(f"{len(self._jobs)} requests wait for the model")
            self._jobs.append(job)
            self._changed.notify_all()
        return job.future

    def _drop_cancelled(self) -> bool:
        """Whether there were cancelled jobs in the queue; they are removed."""
        before = len(self._jobs)
        self._jobs = deque(job for job in self._jobs if not job.future.cancelled())
        return len(self._jobs) < before

    def _run(self) -> None:
        while batch := self._next_batch():
            jobs = [job for job in batch if job.future.set_running_or_notify_cancel()]
            if jobs:
                self._call(jobs)

    def _next_batch(self) -> list[_Job]:
        """Waits for a batch and takes it from the queue; empty when the batcher is stopped."""
        with self._changed:
            while not self._is_stopped:
                self._drop_cancelled()
                if not self._jobs:
                    self._changed.wait()
                    continue
                batch, is_full = self._oldest_batch()
                rest = self._jobs[0].arrived + self.max_delay - time.monotonic()
                if rest > 0 and not is_full:
                    self._changed.wait(timeout=rest)
                    continue
                taken = set(map(id, batch))
                self._jobs = deque(job for job in self._jobs if id(job) not in taken)
                return batch
        return []

    def _oldest_batch(self) -> tuple[list[_Job], bool]:
        """The oldest job and those that go with it, as many as fit; and whether no other would fit."""
        oldest = self._jobs[0]
        batch: list[_Job] = []
        size = 0
        for job in self._jobs:
            if job.key == oldest.key:
                if batch and size + job.size > self.max_batch:
                    return batch, True
                batch.append(job)
                size += job.size
        return batch, size >= self.max_batch

    def _call(self, jobs: Sequence[_Job]) -> None:
        began = time.monotonic()
        try:
            results = jobs[0].function([job.item for job in jobs])
            assert len(results) == len(jobs), f"{len(results)} results for {len(jobs)} items"
        except Exception as error:  # the thread goes on: other requests must not suffer
            log.exception("a batch of %d requests failed", len(jobs))
            for job in jobs:
                failure = BatchFailed("the model failed; the log of the service has the traceback")
                failure.__cause__ = error
                job.future.set_exception(failure)
            return
        self.on_batch(sum(job.size for job in jobs), time.monotonic() - began)
        for job, result in zip(jobs, results, strict=True):
            job.future.set_result(result)
