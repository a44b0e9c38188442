"""Transcodes a video, or parts of it, to small H.264 files with fast random access, or to uncompressed ones.

parts = [FrameRange(target=Path("small.mp4"), first=0, num_frames=info.num_frames)]
transcode("film.avi", parts, info=info, short_side=128, gop=8, crf=20)
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, VideoReformatter

from stvid.errors import TRUNCATED, UNREADABLE, VideoError
from stvid.files import replacing
from stvid.video.container import open_video
from stvid.video.decoding import decode, demux
from stvid.video.images import read_images
from stvid.video.probe import probe
from stvid.video.reader import scaled_size
from stvid.video.types import VideoInfo, check_unchanged, frame_limit
from stvid.video.writer import open_encoder, valid_tag

_TICK = Fraction(1, 90_000)  # seconds; time unit of files with unevenly spaced frames
_RGB, _BT601 = 0, 6  # FFmpeg's numbers of colour spaces
_IMAGE_CHUNK = 16  # images read at once


@dataclass(frozen=True, kw_only=True)
class FrameRange:
    """A range of source frames that becomes one file.

    Attributes:
        target: the file to write; its folder exists.
        first: number of the first frame in the source.
        num_frames: number of frames, at least 1.
        comment: written to the file's metadata; `read_comment` returns it.
    """

    target: Path
    first: int
    num_frames: int
    comment: str = ""

    @property
    def end(self) -> int:
        return self.first + self.num_frames


def transcode(
    source: str | os.PathLike[str],
    parts: Sequence[FrameRange],
    *,
    info: VideoInfo,
    short_side: int,
    gop: int,
    crf: int,
    uncompressed: bool = False,
    max_pixels: int | None = None,
) -> None:
    """Decodes the source once and writes each part, frame by frame: memory does not grow with the length.

    A target appears when it is complete and its copy has been decoded successfully; an unfinished one never appears.
    The same frames give the same bytes.

    Args:
        source: a video file, or a folder of images.
        parts: of the source; they may overlap.
        info: the result of `probe`. Evenly spaced frames keep `info.fps`; other frames keep their times.
        short_side: pixels of the shorter side; frames are never enlarged, and both sides become even.
        gop: maximum distance between two keyframes.
        crf: 0 (lossless) to 51.
        uncompressed: Matroska files of yuv420p pixels; `gop` and `crf` then mean nothing. Times are rounded to 1 ms.
        max_pixels: of a frame of the source, see `read_frames`.

    Raises:
        VideoError: the source cannot be read, or has fewer frames than `info.num_frames`.
        OSError: a target cannot be written.
    """
    needed_T = np.zeros(info.num_frames, bool)
    for part in parts:
        needed_T[part.first : part.end] = True
    pending = sorted(parts, key=lambda part: part.first, reverse=True)
    open_parts: list[tuple[FrameRange, ExitStack, Callable]] = []
    with ExitStack() as files:  # an error closes the open files, which discards them
        size = even_size(info, short_side)
        for number, frame in _source_frames(source, needed_T, info=info, size=size, max_pixels=max_pixels):
            while pending and pending[-1].first == number:
                part, file = pending.pop(), files.enter_context(ExitStack())
                target = _open_target(part, source, like=frame, info=info, gop=gop, crf=crf, uncompressed=uncompressed)
                encode = file.enter_context(target)
                open_parts.append((part, file, encode))
            for part, file, encode in list(open_parts):
                frame.pts = _part_pts(info, part.first, number)
                encode(frame)
                if number + 1 == part.end:
                    file.close()
                    open_parts.remove((part, file, encode))


def even_size(info: VideoInfo, short_side: int) -> tuple[int, int]:
    """Height and width of the written frames, upright: `scaled_size` rounded down to even numbers."""
    height, width = scaled_size(info, short_side)
    return max(height - height % 2, 2), max(width - width % 2, 2)


def read_comment(path: str | os.PathLike[str]) -> str | None:
    """The comment in the metadata of a file; None if the file is missing or cannot be opened."""
    try:
        with open_video(path) as (container, _):
            return next((value for name, value in container.metadata.items() if name.lower() == "comment"), None)
    except VideoError:
        return None


def _part_pts(info: VideoInfo, first: int, number: int) -> int:
    """Time of a frame within its part, in the units of `_open_target`."""
    if info.timestamps is None:
        return number - first
    return round((info.timestamps[number] - info.timestamps[first]) / _TICK)


@contextmanager
def _open_target(
    part: FrameRange, source: str | os.PathLike[str], *, like: av.VideoFrame, info: VideoInfo, **encoding: Any
) -> Iterator[Callable]:
    """Yields a function that encodes a frame; the target appears when the block ends and its copy can be decoded."""
    tick = None if info.timestamps is None else _TICK
    with replacing(part.target) as partial:
        try:
            with open_encoder(
                partial, like=like, fps=info.fps, tune="fastdecode", tick=tick, comment=part.comment, **encoding
            ) as encode:
                yield encode
        except av.FFmpegError as error:
            if isinstance(error, OSError):  # a problem of the disk, not of the video
                raise
            raise VideoError(source, UNREADABLE, f"its frames cannot be encoded: {error}") from error
        try:
            copy = probe(partial)
        except VideoError as error:
            raise VideoError(source, UNREADABLE, f"its copy cannot be read: {error}") from error
        if copy.num_frames != part.num_frames:
            raise VideoError(source, UNREADABLE, f"its copy has {copy.num_frames} frames instead of {part.num_frames}")
        if info.timestamps is None and part.num_frames > 1 and not math.isclose(copy.fps, info.fps, rel_tol=1e-4):
            detail = f"its copy has {copy.fps:g} frames/s instead of {info.fps:g}; uncompressed ones have at most 1000"
            raise VideoError(source, UNREADABLE, detail)


def _source_frames(
    source: str | os.PathLike[str],
    needed_T: np.ndarray,
    *,
    info: VideoInfo,
    size: tuple[int, int],
    max_pixels: int | None,
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yields (number, frame) of the needed frames: upright, of `size` (height, width), limited-range yuv420p.

    As a generator it does not catch errors of the targets, which are not errors of the source.
    """
    height, width = size[::-1] if info.rotation in (90, 270) else size
    limit, converter = frame_limit(info, max_pixels), VideoReformatter()
    if info.codec == "images":
        numbers, shrunk = np.flatnonzero(needed_T).tolist(), size != (info.height, info.width)
        for i in range(0, len(numbers), _IMAGE_CHUNK):
            chunk = numbers[i : i + _IMAGE_CHUNK]
            frames_THWC = read_images(source, chunk, info=info, size=size, shrunk=shrunk, max_pixels=limit).numpy()
            for number, pixels in zip(chunk, frames_THWC, strict=True):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                yield number, _to_yuv420p(frame, converter, height=height, width=width)
        return
    last = int(np.flatnonzero(needed_T)[-1])
    check_unchanged(source, info)
    with open_video(source, max_pixels=limit) as (container, stream):
        number = -1
        for number, frame in enumerate(decode(source, demux(container, stream))):
            if needed_T[number]:
                yield number, _to_yuv420p(frame, converter, height=height, width=width, info=info)
            if number == last:
                return
    raise VideoError(source, TRUNCATED, f"it ends after {number + 1} frames of {info.num_frames}")


def _to_yuv420p(
    frame: av.VideoFrame, converter: VideoReformatter, *, height: int, width: int, info: VideoInfo | None = None
) -> av.VideoFrame:
    """A new frame with the picture and the colour tags of the old one, and nothing else of it; upright with `info`."""
    matrix = _BT601 if frame.format.is_rgb or frame.colorspace == _RGB else frame.colorspace
    small = converter.reformat(
        frame,
        width,
        height,
        "yuv420p",
        dst_colorspace="ITU601" if matrix == _BT601 else None,  # type: ignore[arg-type] # names work too
        dst_color_range=ColorRange.MPEG,
        threads=1,
    )
    pixels = small.to_ndarray()
    if info is not None and (info.rotation or info.mirrored):
        pixels = _turn_yuv(pixels, info)
    result = av.VideoFrame.from_ndarray(pixels, format="yuv420p")
    result.color_range, result.colorspace = ColorRange.MPEG, valid_tag(matrix)
    result.color_primaries, result.color_trc = valid_tag(frame.color_primaries), valid_tag(frame.color_trc)
    return result


def _turn_yuv(pixels: np.ndarray, info: VideoInfo) -> np.ndarray:
    """yuv420p pixels (three planes below one another), rotated and mirrored for display."""
    height, width = pixels.shape[0] * 2 // 3, pixels.shape[1]
    planes = np.split(pixels.reshape(-1), [height * width, height * width * 5 // 4])
    shapes = [(height, width), (height // 2, width // 2), (height // 2, width // 2)]
    turned = [np.rot90(plane.reshape(shape), info.rotation // 90) for plane, shape in zip(planes, shapes, strict=True)]
    turned = [np.fliplr(plane) for plane in turned] if info.mirrored else turned
    return np.concatenate([plane.reshape(-1) for plane in turned]).reshape(-1, turned[0].shape[1])
