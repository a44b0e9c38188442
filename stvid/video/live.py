"""Frames from sources that need not end: cameras, URLs, files at their own pace, raw frames on stdin.

Every source is an object with the attributes and the method of `LiveSource`.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import BinaryIO, Protocol

import numpy as np
import torch
from torch import Tensor

from stvid.errors import UNREADABLE, InputError, VideoError
from stvid.video.capture import Camera, NetworkStream, held_back
from stvid.video.playback import iter_frames
from stvid.video.probe import probe
from stvid.video.sources import kind_of
from stvid.video.types import MAX_PIXELS


class LiveSource(Protocol):
    """A source of frames.

    Attributes:
        name: for messages, without a password.
        fps: frames per second as the source states it; None if it does not, and before the first frame.
        waits: no frame is lost if the model is slower than the source.
        reconnects: opening it again may help after an error.
    """

    name: str
    waits: bool
    reconnects: bool

    @property
    def fps(self) -> float | None: ...

    def frames(self) -> Iterator[tuple[float, Tensor]]:
        """Opens the source and yields `(seconds, frame)`: the time since its start, and uint8 `3 x H x W`, upright RGB.

        Raises:
            InputError: it cannot be opened, or stops in the middle.
        """
        ...

    def close(self) -> None:
        """Ends a wait for the next frame's time, from another thread."""
        ...


def open_source(
    source: str,
    *,
    size: tuple[int, int] | None = None,
    fps: float | None = None,
    realtime: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> LiveSource:
    """The source that a text names, see `sources.kind_of`; it is opened by its `frames()`.

    Args:
        source: a camera's number, a URL, a file, or `-`.
        size: height and width: of raw frames; of a camera, which takes its nearest; None: the camera's default.
        fps: of raw frames; of a camera or URL, where it states none.
        realtime: a file is played at its own pace, and frames on stdin are read as they come; the model does not hold
            them up.
        max_pixels: of a frame.
    """
    kind = kind_of(source)
    if kind == "camera":
        return Camera(int(source), size=size, fps=fps, max_pixels=max_pixels)
    if kind == "url":
        return NetworkStream(source, fps=fps, max_pixels=max_pixels)
    if kind == "file":
        return VideoFile(source, realtime=realtime, max_pixels=max_pixels)
    if size is None or fps is None:
        raise InputError("-: raw frames have no header; size and fps must be given")
    return RawFrames(size=size, fps=fps, realtime=realtime)


class VideoFile:
    """A file or a folder of images. Times are those of the file."""

    reconnects = False

    def __init__(self, path: str | os.PathLike[str], *, realtime: bool = False, max_pixels: int = MAX_PIXELS):
        self.path, self.name, self.max_pixels = path, os.fspath(path), max_pixels
        self.waits = not realtime
        self.fps: float | None = None
        self.closed = threading.Event()

    def frames(self) -> Iterator[tuple[float, Tensor]]:
        frames = self._read()
        try:
            yield from frames if self.waits else held_back(frames, self.closed)
        except VideoError as error:
            reason = "no video, or damaged" if error.reason == UNREADABLE else error.reason
            detail = f" ({error.detail})" if error.detail else ""
            raise InputError(f"{self.name} could not be read: {reason}{detail}") from error

    def _read(self) -> Iterator[tuple[float, Tensor]]:
        info = probe(self.path, decode_all=False, max_pixels=self.max_pixels)
        self.fps = info.fps
        for index, frame_CHW in iter_frames(self.path, info=info, max_pixels=self.max_pixels):
            yield info.start + info.seconds_at(index), frame_CHW

    def close(self) -> None:
        self.closed.set()


class RawFrames:
    """Frames of one size without a header: `height x width x 3` bytes each, RGB. Times are multiples of `1 / fps`.

    Args:
        size: height and width.
        fps: frames per second.
        realtime: another program sends the frames at their own pace.
        file: opened without a buffer; None: stdin.
    """

    reconnects = False

    def __init__(
        self, *, size: tuple[int, int], fps: float, realtime: bool = False, file: BinaryIO | None = None
    ) -> None:
        self.name, self.size, self.fps = "stdin", size, fps
        self.waits = not realtime
        self.file = file

    def frames(self) -> Iterator[tuple[float, Tensor]]:
        height, width = self.size
        with ExitStack() as files:
            # Not sys.stdin: at the end of the program, a thread that waits in a buffered reader is a fatal error.
            file = self.file or files.enter_context(open(sys.stdin.fileno(), "rb", buffering=0, closefd=False))
            number = 0
            while True:
                frame_HWC = np.empty((height, width, 3), dtype=np.uint8)
                found = _fill(file, frame_HWC.data.cast("B"))
                if found < frame_HWC.nbytes:
                    break
                yield number / self.fps, torch.from_numpy(frame_HWC).permute(2, 0, 1)
                number += 1
        if found:
            raise InputError(
                f"stdin ends inside frame {number}: {found:,} of its {frame_HWC.nbytes:,} bytes came. Are the frames "
                f"rgb24, and {width}x{height}?"
            )
        if not number:
            raise InputError("stdin ended before the first frame")

    def close(self) -> None:
        pass


def _fill(file: BinaryIO, memory: memoryview) -> int:
    """Reads until the memory is full or the file ends; returns the number of bytes."""
    filled = 0
    while filled < len(memory) and (count := file.readinto(memory[filled:])):  # type: ignore[attr-defined]
        filled += count
    return filled
