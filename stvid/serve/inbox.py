"""Frames of a socket that have arrived and wait for the model."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

MAX_WAITING = 64 * 2**20  # bytes of the frames of a client that wait


@dataclass(frozen=True)
class SentFrame:
    """A frame of a client.

    Attributes:
        number: counted from 0.
        content: a JPEG, or raw pixels.
        arrived: when, by `time.monotonic()`.
    """

    number: int
    content: bytes
    arrived: float


class Inbox:
    """The frames of one client, in order.

    Args:
        capacity: frames that may wait.
        drops: the oldest are dropped if there are more; else `put` waits, so that the client must.

    Attributes:
        dropped: how many.
    """

    def __init__(self, capacity: int, *, drops: bool):
        self.capacity, self.drops = capacity, drops
        self.dropped = 0
        self._frames: deque[SentFrame] = deque()
        self._num_bytes = 0
        self._end: Exception | None = None
        self._changed = asyncio.Condition()

    async def put(self, frame: SentFrame) -> None:
        """Adds a frame, as soon as there is room for it."""
        async with self._changed:
            while self._frames and self._is_full(len(frame.content)):
                if self.drops:
                    self._num_bytes -= len(self._frames.popleft().content)
                    self.dropped += 1
                else:
                    await self._changed.wait()
            self._frames.append(frame)
            self._num_bytes += len(frame.content)
            self._changed.notify_all()

    def _is_full(self, num_bytes: int) -> bool:
        return len(self._frames) >= self.capacity or self._num_bytes + num_bytes > MAX_WAITING

    async def end(self, error: Exception) -> None:
        """No frame comes any more, for this reason."""
        async with self._changed:
            self._end = error
            self._changed.notify_all()

    async def take(self) -> list[SentFrame]:
        """All frames that wait, at least one, oldest first; raises the error of `end` after the last ones."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._frames or self._end)
            if not self._frames:
                assert self._end is not None
                raise self._end
            frames = list(self._frames)
            self._frames.clear()
            self._num_bytes = 0
            self._changed.notify_all()
            return frames
