"""Threads for slow work, a pool for each kind, so that no kind waits for another."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from stvid.errors import InputError
from stvid.video.workers import progress_watched

T = TypeVar("T")
THREAD_NAME = "serve-"  # how the names of all threads of the service begin
NUM_WRITERS = 4


class ThreadPools:
    """The pools of a service.

    Args:
        size: threads that decode, at least 1.

    Attributes:
        decoders: read the clips of `/predict`.
        segmenters: read videos for `/segments`; busy for minutes.
        writers: write uploads to the disk.
        frames: decode the frames of sockets.
        copies: make the copies of `/playable`; busy for minutes.
    """

    def __init__(self, size: int):
        self.decoders = self._pool("decoder", size)
        self.segmenters = self._pool("segmenter", size)
        self.writers = self._pool("writer", NUM_WRITERS)
        self.frames = self._pool("frame", size)
        self.copies = self._pool("copy", 1)

    @staticmethod
    def _pool(kind: str, size: int) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(size, thread_name_prefix=THREAD_NAME + kind)

    def shutdown(self) -> None:
        """Drops what waits. What runs goes on: Python cannot end a thread."""
        for pool in (self.decoders, self.segmenters, self.writers, self.frames, self.copies):
            pool.shutdown(wait=False, cancel_futures=True)


class Cancelled(Exception):
    """Nobody waits for the result any more."""


async def in_thread(
    pool: ThreadPoolExecutor,
    function: Callable[[], T],
    *,
    on_cancel: Callable[[], object] = lambda: None,
    max_seconds: float = math.inf,
) -> T:
    """Calls a function in a pool. A caller that is cancelled waits for its end: it may read the caller's files.

    The reading of a video ends at its next packet when the caller is cancelled, or when the time is up.

    Args:
        pool: of threads.
        function: what to call.
        on_cancel: called when the caller is cancelled; it may end the function early.
        max_seconds: for the reading of a video.

    Raises:
        InputError: the time is up.
    """
    is_cancelled = threading.Event()

    def work() -> T:
        end = time.monotonic() + max_seconds

        def check() -> None:
            if is_cancelled.is_set():
                raise Cancelled
            if time.monotonic() > end:
                raise InputError(
                    f"the video takes longer than {max_seconds:g} seconds to read, the limit of this service"
                )

        with progress_watched(check):
            return function()

    future = pool.submit(work)
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        is_cancelled.set()
        on_cancel()
        if not future.done():
            ended = asyncio.wrap_future(future)
            await asyncio.wait([ended])
            _ = ended.cancelled() or ended.exception()  # otherwise asyncio complains that nobody looked at it
        raise
