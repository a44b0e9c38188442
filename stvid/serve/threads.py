"""Threads for slow work, a pool for each kind, so that no kind waits for another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

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


async def in_thread(
    pool: ThreadPoolExecutor, function: Callable[[], T], *, on_cancel: Callable[[], object] = lambda: None
) -> T:
    """Calls a function in a pool. A caller that is cancelled waits for its end: it may read the caller's files.

    Args:
        pool: of threads.
        function: what to call.
        on_cancel: called when the caller is cancelled; it may end the function early.
    """
    future = pool.submit(function)
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        on_cancel()
        if not future.done():
            ended = asyncio.wrap_future(future)
            await asyncio.wait([ended])
            _ = ended.cancelled() or ended.exception()  # otherwise asyncio complains that nobody looked at it
        raise
