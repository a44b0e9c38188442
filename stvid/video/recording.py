"""Records live frames to an H.264 file, each at its own time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction

import av
import numpy as np

from stvid.files import replacing
from stvid.video.writer import open_encoder

TICK = Fraction(1, 90_000)  # seconds, the unit of the file's times


@contextmanager
def open_recording(path: str | os.PathLike[str], *, fps: float) -> Iterator[Callable[[np.ndarray, float], None]]:
    """Yields a function that adds a frame: uint8 `H x W x 3`, RGB, and its time in seconds.

    The file appears when the block ends; without a frame there is none. It never replaces another file: if `path`
    exists by then, the recording is `NAME-2.mp4` beside it, and a warning says so. Its first frame is at time 0. Frames
    are made even in height and width by leaving out a row or column; those of another size than the first are resized
    to it. A frame that is not later than the one before is left out.

    Args:
        path: an mp4 file.
        fps: frames per second that the file states.

    Raises:
        OSError: the file cannot be written; nothing is left of it.
    """
    with ExitStack() as stack:
        encode: Callable[[av.VideoFrame], None] | None = None
        height = width = 0
        first, latest = 0.0, -1

        def add(frame_HWC: np.ndarray, seconds: float) -> None:
            nonlocal encode, height, width, first, latest
            if encode is None:
                height, width = (max(side // 2 * 2, 2) for side in frame_HWC.shape[:2])
                first = seconds
            pts = round((seconds - first) / TICK)
            if pts <= latest:
                return
            frame = _frame(frame_HWC, height=height, width=width)
            if encode is None:
                partial = stack.enter_context(replacing(path, overwrite=False))
                encode = stack.enter_context(
                    open_encoder(partial, like=frame, fps=fps, crf=23, gop=max(round(2 * fps), 1), tick=TICK)
                )
            frame.pts = latest = pts
            encode(frame)

        yield add


def _frame(frame_HWC: np.ndarray, *, height: int, width: int) -> av.VideoFrame:
    if frame_HWC.shape[0] - height in (0, 1) and frame_HWC.shape[1] - width in (0, 1):
        frame_HWC = frame_HWC[:height, :width]
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_HWC), format="rgb24")
    return frame if (frame.height, frame.width) == (height, width) else frame.reformat(width=width, height=height)
