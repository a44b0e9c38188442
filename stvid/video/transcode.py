"""One video, or parts of it, to small H.264 files of which every frame is quickly reached.

parts = [Part(target=Path("small.mp4"), first=0, num_frames=info.num_frames)]
transcode("film.avi", parts, info=info, short_side=128, gop=8, crf=20)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, VideoReformatter

from stvid.errors import TRUNCATED, UNREADABLE, VideoError
from stvid.files import replacing
from stvid.video import types as facts
from stvid.video.decoding import decode, open_video
from stvid.video.images import read_images
from stvid.video.probe import probe
from stvid.video.reader import scaled_size
from stvid.video.types import VideoInfo
from stvid.video.writer import encoding

_TICK = Fraction(1, 90_000)  # seconds; fine enough for the times of any file whose frames are not evenly spaced
_RGB, _BT601, _UNKNOWN = 0, 6, 2  # FFmpeg's numbers for what a picture's colours mean
_AT_ONCE = 16  # images read before they are encoded


@dataclass(frozen=True, kw_only=True)
class Part:
    """What becomes a file of its own.

    Attributes:
        target: the file; its folder exists.
        first: number of its first frame in the source.
        num_frames: how many frames it has, at least 1.
        comment: kept in the file's own metadata, where `comment_of` finds it.
    """

    target: Path
    first: int
    num_frames: int
    comment: str = ""

    @property
    def end(self) -> int:
        return self.first + self.num_frames


def transcode(
    source: str | os.PathLike[str], parts: Sequence[Part], *, info: VideoInfo, short_side: int, gop: int, crf: int
) -> None:
    """Decode the source once, from its first frame, and write each part: frame by frame, however long it is.

    A part is in its place as soon as it is complete and has been decoded again; what is not is not there at all. The
    same frames give the same bytes.

    Args:
        source: a video file, or a folder of images.
        parts: of the source; they may overlap.
        info: what `probe` said of the source. Evenly spaced frames keep `info.fps`, others each its time.
        short_side: pixels of the shorter side; pictures are never enlarged, and their sides become even.
        gop: the longest distance of two keyframes.
        crf: 0 (lossless) to 51.

    Raises:
        VideoError: the source cannot be read, or ends before a frame that `info` promises.
        OSError: a target cannot be written.
    """
    needed_T = np.zeros(info.num_frames, bool)
    for part in parts:
        needed_T[part.first : part.end] = True
    waiting = sorted(parts, key=lambda part: part.first, reverse=True)
    writing: list[tuple[Part, ExitStack, Callable]] = []
    with ExitStack() as files:  # an error closes those that are open, and thereby throws them away
        for number, frame in _pictures(source, needed_T, info=info, size=even_size(info, short_side)):
            while waiting and waiting[-1].first == number:
                part, file = waiting.pop(), files.enter_context(ExitStack())
                encode = file.enter_context(_file(part, source, like=frame, info=info, gop=gop, crf=crf))
                writing.append((part, file, encode))
            for part, file, encode in list(writing):
                frame.pts = _pts(info, part.first, number)
                encode(frame)
                if number + 1 == part.end:
                    file.close()
                    writing.remove((part, file, encode))


def even_size(info: VideoInfo, short_side: int) -> tuple[int, int]:
    """Height and width, upright, that frames are brought to: `scaled_size` cut to even numbers."""
    height, width = scaled_size(info, short_side)
    return max(height - height % 2, 2), max(width - width % 2, 2)


def source_identity(path: str | os.PathLike[str]) -> list | None:
    """Size in bytes and what else shows that a source has changed; None where it cannot be looked at."""
    try:
        return facts.identity(path)
    except OSError:
        return None


def comment_of(path: str | os.PathLike[str]) -> str | None:
    """The comment of a finished file; None where there is no such file, or not one that can be opened."""
    try:
        with open_video(path) as (container, _):
            return container.metadata.get("comment")
    except VideoError:
        return None


def _pts(info: VideoInfo, first: int, number: int) -> int:
    """Time of a frame within its part, in the units of `_file`."""
    if info.timestamps is None:
        return number - first
    return round((info.timestamps[number] - info.timestamps[first]) / _TICK)


@contextmanager
def _file(part: Part, source, *, like: av.VideoFrame, info: VideoInfo, gop: int, crf: int) -> Iterator[Callable]:
    """Yields the function that encodes a frame; the file takes its place when the block ends and it proves sound."""
    tick = None if info.timestamps is None else _TICK
    how = {"fps": info.fps, "crf": crf, "gop": gop, "tune": "fastdecode", "tick": tick, "comment": part.comment}
    with replacing(part.target) as partial:
        try:
            with encoding(partial, like=like, **how) as encode:
                yield encode
        except av.FFmpegError as error:
            if isinstance(error, OSError):  # the disk's matter, not the video's
                raise
            raise VideoError(source, UNREADABLE, f"its frames cannot be encoded: {error}") from error
        try:
            found = probe(partial).num_frames
        except VideoError as error:
            raise VideoError(source, UNREADABLE, f"its copy cannot be read: {error}") from error
        if found != part.num_frames:
            raise VideoError(source, UNREADABLE, f"its copy has {found} frames instead of {part.num_frames}")


def _pictures(
    source: str | os.PathLike[str], needed_T: np.ndarray, *, info: VideoInfo, size: tuple[int, int]
) -> Iterator[tuple[int, av.VideoFrame]]:
    """The frames that are needed and their numbers: upright, of the given height and width, limited-range yuv420p.

    A generator, so that what goes wrong with a target is not taken for the source's mistake.
    """
    height, width = size[::-1] if info.rotation in (90, 270) else size
    converter = VideoReformatter()
    if info.codec == "images":
        numbers, shrunk = np.flatnonzero(needed_T).tolist(), size != (info.height, info.width)
        for i in range(0, len(numbers), _AT_ONCE):
            some = numbers[i : i + _AT_ONCE]
            frames_THWC = read_images(source, some, num_frames=info.num_frames, size=size, shrunk=shrunk).numpy()
            for number, pixels in zip(some, frames_THWC, strict=True):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                yield number, _converted(frame, converter, height=height, width=width, rotation=0)
        return
    last = int(np.flatnonzero(needed_T)[-1])
    with open_video(source) as (container, stream):
        number = -1
        for number, frame in enumerate(decode(source, container.demux(stream))):
            if needed_T[number]:
                yield number, _converted(frame, converter, height=height, width=width, rotation=info.rotation)
            if number == last:
                return
    raise VideoError(source, TRUNCATED, f"it ends after {number + 1} frames of {info.num_frames}")


def _converted(
    frame: av.VideoFrame, converter: VideoReformatter, *, height: int, width: int, rotation: int
) -> av.VideoFrame:
    """A frame that has nothing of the old one but its picture and the tags that say what its colours mean."""
    matrix = _BT601 if frame.format.is_rgb or frame.colorspace == _RGB else frame.colorspace
    small = converter.reformat(
        frame,
        width,
        height,
        "yuv420p",
        dst_colorspace="ITU601" if matrix == _BT601 else None,
        dst_color_range=ColorRange.MPEG,
        threads=1,
    )
    pixels = _turned(small.to_ndarray(), rotation) if rotation else small.to_ndarray()
    fresh = av.VideoFrame.from_ndarray(pixels, format="yuv420p")
    fresh.color_range, fresh.colorspace = ColorRange.MPEG, _known(matrix)
    fresh.color_primaries, fresh.color_trc = _known(frame.color_primaries), _known(frame.color_trc)
    return fresh


def _known(tag: int) -> int:
    """A tag that the standard defines (H.273: 0 and 3 are reserved); others stand in damaged files."""
    return tag if tag == 1 or 4 <= tag <= 18 else _UNKNOWN


def _turned(pixels: np.ndarray, rotation: int) -> np.ndarray:
    """yuv420p pixels (the three planes below one another) turned counterclockwise by a multiple of 90 degrees."""
    height, width = pixels.shape[0] * 2 // 3, pixels.shape[1]
    planes = np.split(pixels.reshape(-1), [height * width, height * width * 5 // 4])
    shapes = [(height, width), (height // 2, width // 2), (height // 2, width // 2)]
    turned = [np.rot90(plane.reshape(shape), rotation // 90) for plane, shape in zip(planes, shapes, strict=True)]
    return np.concatenate([plane.reshape(-1) for plane in turned]).reshape(-1, turned[0].shape[1])
