"""Hands frames from the thread that reads a source to the thread that predicts; a lost source is opened again."""

from __future__ import annotations

import gc
import threading
import time
from dataclasses import dataclass

from torch import Tensor

from stvid.errors import InputError
from stvid.video.live import LiveSource

MAX_BYTES = 128 * 2**20  # of the frames that wait; a frame of 4K has 24 MiB
END_TIMEOUT = 1.0  # seconds
FIRST_PAUSE, LAST_PAUSE = 1.0, 30.0  # seconds between two attempts to open a lost source again


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """A frame that has arrived.

    Attributes:
        seconds: its time on the source's clock.
        frame_CHW: uint8 `3 x H x W`.
        arrived: when it was decoded, `time.monotonic()`.
        connection: how often the source had come back before it.
    """

    seconds: float
    frame_CHW: Tensor
    arrived: float
    connection: int


class FrameSlot:
    """Keeps the newest frame of a source, which a thread reads; older ones are dropped, never queued.

    A source that was lost (`LiveSource.reconnects`) is opened again after pauses of 1, 2, 4, ... 30 seconds.

    If the source waits (`LiveSource.waits`), its thread stops until its frame was taken, and none is dropped.

    Args:
        source: opened by the thread that `start` begins.
        capacity: frames that are kept, the newest ones; for models that look at several frames at once.

    Attributes:
        dropped: number of frames.
        connections: how often the source came back.
        lost: why the source is gone, as long as it is; else empty.
    """

    def __init__(self, source: LiveSource, *, capacity: int = 1):
        self.source, self.capacity = source, capacity
        self.dropped = self.connections = 0
        self.lost = ""
        self._frames: list[Arrival] = []
        self._error: Exception | None = None
        self._ended = False
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()

    def start(self) -> None:
        """Begins to read."""
        # a daemon: FFmpeg may wait for the network, and the end of the program does not
        self._thread = threading.Thread(target=self._read, name=f"frames of {self.source.name}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread, as soon as it comes back from waiting for data; waits no longer than a moment for it."""
        self._closed.set()
        self.source.close()
        with self._changed:
            self._changed.notify_all()
        if self._thread is not None:  # a thread in the middle of a frame would abort a program that ends
            self._thread.join(END_TIMEOUT)

    def take(self, *, timeout: float) -> list[Arrival] | None:
        """Takes the frames that have arrived, oldest first; empty if none arrives in time; None at the end.

        Raises:
            InputError: the source cannot be opened, or broke; after the frames before that.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._frames or self._ended, timeout)
            frames, self._frames = self._frames, []
            self._changed.notify_all()
            if frames or not self._ended:
                return frames
        if self._error is not None:
            raise self._error
        return None

    def _read(self) -> None:
        try:
            self._read_connections()
        except Exception as error:
            self._error = error  # raised by `take`
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _read_connections(self) -> None:
        pause, has_frames = FIRST_PAUSE, False
        while True:
            try:
                for seconds, frame_CHW in self.source.frames():
                    self.connections += bool(self.lost)
                    pause, has_frames, self.lost = FIRST_PAUSE, True, ""
                    if not self._put(seconds, frame_CHW):
                        return
                return
            except InputError as error:
                if not (has_frames and self.source.reconnects):  # the first time, it is a mistake of the user
                    raise
                self.lost = str(error)
            gc.collect()  # PyAV's containers and decoders refer to each other: 10 to 30 MiB for each lost connection
            if self._closed.wait(pause):
                return
            pause = min(2 * pause, LAST_PAUSE)

    def _put(self, seconds: float, frame_CHW: Tensor) -> bool:
        """Whether the frame was taken over: False after `close`."""
        arrived = time.monotonic()
        arrival = Arrival(seconds=seconds, frame_CHW=frame_CHW, arrived=arrived, connection=self.connections)
        with self._changed:
            if self.source.waits:
                self._changed.wait_for(lambda: not self._frames or self._closed.is_set())
            elif (surplus := len(self._frames) + 1 - self._room(frame_CHW)) > 0:  # the room may have become smaller
                del self._frames[:surplus]
                self.dropped += surplus
            self._frames.append(arrival)
            self._changed.notify_all()
        return not self._closed.is_set()

    def _room(self, frame_CHW: Tensor) -> int:
        """Number of frames of this size that may wait."""
        return max(min(self.capacity, MAX_BYTES // max(frame_CHW.nbytes, 1)), 1)
