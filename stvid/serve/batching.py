"""Items of several clients in one call of the model: one thread and a time budget."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from stvid.serve.threads import THREAD_NAME

T = TypeVar("T")
R = TypeVar("R")
log = logging.getLogger(__name__)


class ServiceStopping(Exception):
    """The service takes no more work, or drops it."""


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

    Items go together if they have the same function and the same key. A full batch goes at once. Without one, the
    oldest item waits for others, at most `max_delay`, and only while there are clients that do not wait already. Items
    that were cancelled meanwhile are left out.

        batcher = Batcher(max_batch=16, max_delay=0.005)
        batcher.start()
        future = batcher.submit(classify, clips, key=clips.shape[1:], size=len(clips))
        future.result()

    Nothing limits the queue. Each client waits for its item before it submits the next one, so whoever limits the
    clients limits the queue, too.

    Args:
        max_batch: the sum of the items' sizes in a call; a larger item comes alone.
        max_delay: seconds.
        num_clients: how many may submit items now, with those that wait.
        on_batch: called in the thread after each call, with the sum of sizes and the seconds it took.

    Attributes:
        num_failures: calls in a row that failed.
    """

    def __init__(
        self,
        *,
        max_batch: int,
        max_delay: float,
        num_clients: Callable[[], float] = lambda: math.inf,
        on_batch: Callable[[int, float], object] = lambda size, seconds: None,
    ):
        self.max_batch, self.max_delay = max_batch, max_delay
        self.num_clients, self.on_batch = num_clients, on_batch
        self.num_failures = 0
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._is_stopped = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts the thread; again after `stop`."""
        assert not self.is_running
        self._is_stopped, self.num_failures = False, 0
        self._thread = threading.Thread(target=self._run, name=THREAD_NAME + "model", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def stop(self, *, timeout: float | None = None) -> None:
        """Refuses new items, drops those that wait (ServiceStopping), and waits for the call that is running.

        Args:
            timeout: seconds; None: until it is done.
        """
        with self._changed:
            self._is_stopped = True
            jobs, self._jobs = self._jobs, deque()
            self._changed.notify_all()
        for job in jobs:
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(ServiceStopping())
        if self._thread is not None:
            self._thread.join(timeout)

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
            The item's result. It raises BatchFailed if the function raised an error, and ServiceStopping if the batcher
            was stopped before. Cancel it to leave the queue.

        Raises:
            ServiceStopping: the batcher is stopped.
        """
        job = _Job(function, item, (function, key), size, time.monotonic())
        with self._changed:
            if self._is_stopped:
                raise ServiceStopping
            self._jobs.append(job)
            self._changed.notify_all()
        return job.future

    def _run(self) -> None:
        while batch := self._next_batch():
            jobs = [job for job in batch if job.future.set_running_or_notify_cancel()]
            if jobs:
                self._call(jobs)

    def _next_batch(self) -> list[_Job]:
        """Waits for a batch and takes it from the queue; empty when the batcher is stopped."""
        with self._changed:
            while not self._is_stopped:
                self._jobs = deque(job for job in self._jobs if not job.future.cancelled())
                if not self._jobs:
                    self._changed.wait()
                    continue
                seconds = self._jobs[0].arrived + self.max_delay - time.monotonic()
                if len(self._jobs) >= self.num_clients():
                    seconds = 0.0  # nobody is left who could join
                batch, is_full = self._choose_batch(only_oldest=seconds <= 0)
                if seconds > 0 and not is_full:
                    self._changed.wait(timeout=seconds)
                    continue
                taken = set(map(id, batch))
                self._jobs = deque(job for job in self._jobs if id(job) not in taken)
                return batch
        return []

    def _choose_batch(self, *, only_oldest: bool) -> tuple[list[_Job], bool]:
        """The first batch that is full, or else that of the oldest job; and whether it is full.

        Args:
            only_oldest: the oldest job has waited long enough, so that full batches of others must not overtake it.
        """
        groups: dict[Hashable, list[_Job]] = {}
        for job in self._jobs:
            groups.setdefault(job.key, []).append(job)
        batches = [self._fill_batch(group) for group in groups.values()]
        full = [batch for batch in batches if batch[1] and not only_oldest]
        return (full or batches)[0]

    def _fill_batch(self, jobs: Sequence[_Job]) -> tuple[list[_Job], bool]:
        """As many jobs as fit into a batch, all with the same key; and whether no other would fit."""
        batch: list[_Job] = []
        size = 0
        for job in jobs:
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
            self.on_batch(sum(job.size for job in jobs), time.monotonic() - began)
        except BaseException as error:  # also SystemExit of a user's model: the thread goes on, for the other requests
            log.exception("a batch of %d requests failed", len(jobs))
            self.num_failures += 1
            for job in jobs:
                failure = BatchFailed("the model failed; the log of the service has the traceback")
                failure.__cause__ = error
                job.future.set_exception(failure)
            return
        self.num_failures = 0
        for job, result in zip(jobs, results, strict=True):
            job.future.set_result(result)
