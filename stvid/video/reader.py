"""Reads exact frames of a video, with PyAV or an optional backend (decord, torchcodec).

decord comes with stvid on most platforms; torchcodec is an extra. Both find frames by index or time stamp, which is
wrong for some files (MPEG-4 with B-frames, many AVI files). So they are used only where `probe` trusts random access;
PyAV reads all other files, and those where the backend fails.
"""

from __future__ import annotations

import importlib.util
import operator
import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any

import av
import numpy as np
import torch
from av.container import InputContainer
from av.video.frame import PictureType
from av.video.reformatter import Interpolation, VideoReformatter

from stvid.errors import TRUNCATED, VideoError
from stvid.preprocess import resize
from stvid.video.container import open_video
from stvid.video.decoding import decode, demux
from stvid.video.images import read_images
from stvid.video.orientation import turn_upright
from stvid.video.probe import probe
from stvid.video.shard_index import find_member
from stvid.video.shard_reader import open_member
from stvid.video.skipping import INTRA_ONLY, demux_by_time, demux_in_order
from stvid.video.types import MAX_PIXELS, VideoInfo, check_pixels, check_unchanged, frame_limit

BACKENDS = ("pyav", "decord", "torchcodec")
INSTALL = {
    "pyav": "pip install av",
    "decord": "pip install decord2 (x86-64 and ARM Linux, x86-64 Windows, Apple silicon)",
    "torchcodec": "pip install 'stvid[torchcodec]'",
}
# yields the frames of sorted, distinct indices, or None if it finds others than expected
DecodeFrames = Callable[
    [str | os.PathLike[str], InputContainer, av.VideoStream, Sequence[int], VideoInfo], Iterator[av.VideoFrame | None]
]
_PASSED_OVER = 16  # packets that are read rather than sought over, where they need not be decoded
_SHRINK_AS_YUV = ("yuv420p", "yuvj420p")


def is_installed(backend: str) -> bool:
    """Whether a backend's package is installed (torchcodec also needs the system's FFmpeg libraries)."""
    return importlib.util.find_spec({"pyav": "av"}.get(backend, backend)) is not None


def _read_backend(
    backend: str, path: str | os.PathLike[str], distinct: Sequence[int], *, info: VideoInfo, num_threads: int
) -> torch.Tensor | None:
    """uint8 (T, H, W, C) of sorted, distinct indices at native size; None if the backend cannot be trusted.

    Raises:
        ImportError: the backend, or a library that it needs, is missing.
    """
    if info.rotation or info.mirrored:  # decord adds a fourth channel to some; others ignore mirroring
        return None
    read, file = {"decord": _read_decord, "torchcodec": _read_torchcodec}[backend], os.path.abspath(path)
    member = find_member(file)
    with nullcontext(file) if member is None else open_member(path, member) as source:
        frames_THWC = read(source, distinct, info=info, num_threads=num_threads)
    expected = (len(distinct), info.height, info.width, 3)
    return frames_THWC if frames_THWC is not None and tuple(frames_THWC.shape) == expected else None


def _read_decord(source: Any, distinct: Sequence[int], *, info: VideoInfo, num_threads: int) -> torch.Tensor | None:
    # decord fails on some HEVC files and rounds deep pixels differently
    if info.codec == "hevc" or info.pixel_format.endswith(("le", "be")):
        return None
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    try:
        reader = decord.VideoReader(source, num_threads=num_threads)
        return torch.from_numpy(reader.get_batch(distinct).asnumpy()) if len(reader) == info.num_frames else None
    except (decord.DECORDError, RuntimeError, AssertionError):
        return None


def _read_torchcodec(source: Any, distinct: Sequence[int], *, info: VideoInfo, num_threads: int) -> torch.Tensor | None:
    from torchcodec.decoders import VideoDecoder

    try:
        decoder = VideoDecoder(source, num_ffmpeg_threads=num_threads, dimension_order="NHWC", seek_mode="exact")
        return decoder.get_frames_at(list(distinct)).data if len(decoder) == info.num_frames else None
    except (RuntimeError, ValueError, IndexError):
        return None


def read_frames(
    path: str | os.PathLike[str],
    indices: Iterable[int],
    *,
    info: VideoInfo | None = None,
    short_side: int | None = None,
    num_threads: int = 1,
    backend: str = "pyav",
    max_pixels: int | None = None,
) -> torch.Tensor:
    """Decodes the frames at `indices`, in that order.

    Args:
        path: a video file, or a folder of images.
        indices: frame numbers from 0 in display order; any order, repeats allowed.
        info: the result of `probe`; without it the file is probed first, which decodes all of it.
        short_side: shrink each frame so that its shorter side has this many pixels (area interpolation), which is
            cheaper than resizing later; frames are never enlarged. None: native size.
        num_threads: of the decoder; 1 in the workers of a loader, which already use every core. It affects only the
            pixels that FFmpeg invents for damaged areas.
        backend: `pyav`, `decord` or `torchcodec`. The last two read only files with random access; PyAV reads the
            others. All return the same frames; shrunk frames may differ by rounding.
        max_pixels: of a frame; PyAV and Pillow refuse larger ones before they allocate memory. None: 8192 x 8192, or
            the size in `info` if that is larger.

    Returns:
        uint8 (T, C, H, W), RGB, upright (rotated and mirrored for display); a view of T x H x W x C memory.

    Raises:
        ValueError: no index, an index outside of the video, a short side below 1, or an unknown backend.
        VideoError: the file cannot be read, has fewer frames than `info.num_frames`, or is not the one that was probed.
    """
    wanted = [operator.index(i) for i in indices]
    if not wanted:
        raise ValueError(f"{path}: no frame indices were given")
    if backend not in BACKENDS:
        raise ValueError(f"backend (={backend!r}) must be one of {', '.join(BACKENDS)}")
    info = info or probe(path, max_pixels=MAX_PIXELS if max_pixels is None else max_pixels)
    limit = frame_limit(info, max_pixels)
    check_pixels(path, info.height, info.width, max_pixels=limit)
    _check_indices(path, wanted, info)
    distinct, size = sorted(set(wanted)), scaled_size(info, short_side)
    frames_THWC = None
    if info.codec == "images":
        shrunk = size != (info.height, info.width)
        frames_THWC = read_images(path, distinct, info=info, size=size, shrunk=shrunk, max_pixels=limit)
    else:
        check_unchanged(path, info)
    if frames_THWC is None and backend != "pyav" and info.random_access:
        frames_THWC = _read_backend(backend, path, distinct, info=info, num_threads=num_threads)
        if frames_THWC is not None and size != (info.height, info.width):
            frames_THWC = resize(frames_THWC.permute(0, 3, 1, 2), size).permute(0, 2, 3, 1)
    read = partial(_read_pyav, path, distinct, info=info, size=size, num_threads=num_threads, max_pixels=limit)
    if frames_THWC is None and info.random_access:
        with suppress(VideoError):  # FFmpeg may know too little of the file; then the next attempt says what is wrong
            frames_THWC = read(_decode_with_seeks, is_known=True)
    fast = _decode_with_seeks if info.random_access else _decode_in_order if info.b_frames_in_order else None
    for decode_frames in (fast, _decode_from_start):  # the last one raises where it does not find the frames
        if frames_THWC is None and decode_frames is not None:
            frames_THWC = read(decode_frames)
    assert frames_THWC is not None
    if wanted != distinct:
        place = {index: i for i, index in enumerate(distinct)}
        frames_THWC = frames_THWC[[place[index] for index in wanted]]
    return frames_THWC.permute(0, 3, 1, 2)


def _check_indices(path: str | os.PathLike[str], wanted: Sequence[int], info: VideoInfo) -> None:
    if min(wanted) < 0 or max(wanted) >= info.num_frames:
        raise ValueError(
            f"{path}: frame indices from {min(wanted)} to {max(wanted)} were requested; "
            f"the video has {info.num_frames} frames, 0 to {info.num_frames - 1}"
        )


def scaled_size(info: VideoInfo, short_side: int | None) -> tuple[int, int]:
    """Height and width of frames whose shorter side is reduced to `short_side` pixels; never enlarged.

    Raises:
        ValueError: a short side below 1.
    """
    shorter = min(info.height, info.width)
    if short_side is not None and short_side < 1:
        raise ValueError(f"short_side (={short_side}) must be at least 1")
    if short_side is None or short_side >= shorter:
        return info.height, info.width
    return max(round(info.height * short_side / shorter), 1), max(round(info.width * short_side / shorter), 1)


def _read_pyav(
    path: str | os.PathLike[str],
    distinct: Sequence[int],
    decode_frames: DecodeFrames,
    *,
    info: VideoInfo,
    size: tuple[int, int],
    num_threads: int,
    max_pixels: int,
    is_known: bool = False,
) -> torch.Tensor | None:
    """uint8 (T, H, W, C) of sorted, distinct indices; None if `decode_frames` finds other frames than expected."""
    converter = FrameConverter(info, size, num_threads=num_threads)
    with open_video(path, num_threads=num_threads, max_pixels=max_pixels, is_known=is_known) as (container, stream):
        frames_THWC = torch.empty((len(distinct), converter.height, converter.width, 3), dtype=torch.uint8)
        pixels = frames_THWC.numpy()
        frames = decode_frames(path, container, stream, distinct, info)
        for place, frame in enumerate(frames):
            if frame is None:
                return None
            pixels[place] = converter(frame)
    return turn_upright(frames_THWC, info.rotation, info.mirrored)


class FrameConverter:
    """Decoded frames of one video to RGB pixels, not yet turned upright. Not for two threads at a time.

    Args:
        info: the result of `probe`.
        size: height and width of the pixels when they are upright, see `scaled_size`.
        num_threads: for the conversion.
    """

    def __init__(self, info: VideoInfo, size: tuple[int, int], *, num_threads: int = 1):
        self.height, self.width = size[::-1] if info.rotation in (90, 270) else size
        self.num_threads = num_threads
        # create them once: that costs more than converting a small frame
        self._converter, self._shrinker = VideoReformatter(), VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """uint8 H x W x 3; the memory belongs to a frame of FFmpeg, so copy it."""
        height, width = self.height, self.width
        if frame.format.name in _SHRINK_AS_YUV and (frame.height, frame.width) != (height, width):
            frame = _shrink_yuv(frame, self._shrinker, height=height, width=width, num_threads=self.num_threads)
        # The size is given because some files change it on the way.
        rgb = self._converter.reformat(frame, width, height, "rgb24", threads=self.num_threads).planes[0]
        plane = np.frombuffer(rgb, np.uint8)  # type: ignore[call-overload] # a plane is a buffer
        rows = plane.reshape(height, rgb.line_size)
        return rows[:, : width * 3].reshape(height, width, 3)


def _shrink_yuv(
    frame: av.VideoFrame, shrinker: VideoReformatter, *, height: int, width: int, num_threads: int
) -> av.VideoFrame:
    """Resizes a YUV frame before it is converted to RGB: half as many samples, and fewer pixels to convert."""
    options = {"interpolation": Interpolation.AREA, "threads": num_threads}
    small = shrinker.reformat(frame, width, height, frame.format.name, **options)
    small.colorspace, small.color_range = frame.colorspace, frame.color_range
    return small


def _decode_from_start(
    path: str | os.PathLike[str],
    container: InputContainer,
    stream: av.VideoStream,
    distinct: Sequence[int],
    info: VideoInfo,
) -> Iterator[av.VideoFrame]:
    """Yields the frames of sorted, distinct indices, decoding from the first frame of the video."""
    num_found, number = 0, -1
    for number, frame in enumerate(decode(path, demux(container, stream))):
        if number == distinct[num_found]:
            yield frame
            num_found += 1
            if num_found == len(distinct):
                return
    index = distinct[num_found]
    raise VideoError(path, TRUNCATED, f"frame {index} of {info.num_frames} was requested, it ends after {number + 1}")


def _decode_in_order(
    path: str | os.PathLike[str],
    container: InputContainer,
    stream: av.VideoStream,
    distinct: Sequence[int],
    info: VideoInfo,
) -> Iterator[av.VideoFrame | None]:
    """As `_decode_from_start`, without the B-frames that are not wanted; None if a frame is not where it should be."""
    skipped, kept, num_found, number = set[int](), set[int](), 0, -1
    packets = demux_in_order(container, stream, wanted=frozenset(distinct), skipped=skipped, kept=kept)
    for frame in decode(path, packets):
        number += 1
        while number in skipped:
            number += 1
        if number > distinct[num_found] or frame.is_corrupt or (frame.pict_type == PictureType.B) != (number in kept):
            break
        if number == distinct[num_found]:
            yield frame
            num_found += 1
            if num_found == len(distinct):
                return
    yield None


def _decode_with_seeks(
    path: str | os.PathLike[str],
    container: InputContainer,
    stream: av.VideoStream,
    distinct: Sequence[int],
    info: VideoInfo,
) -> Iterator[av.VideoFrame | None]:
    """Yields the frames of sorted, distinct indices, seeking if a keyframe lies ahead; None if that fails."""
    tick, first_pts = float(stream.time_base or 1), info.first_pts or 0
    wanted, skipped = frozenset(distinct), set[int]()

    def number_of(pts: int) -> int:
        return info.index_at((pts - first_pts) * tick)

    def start() -> Iterator[av.VideoFrame]:
        packets = demux_by_time(container, stream, number_of=number_of, wanted=wanted, skipped=skipped)
        return decode(path, packets)

    nearby = 1 + _PASSED_OVER * (info.codec in INTRA_ONLY)
    number, frames = -1, start()
    frame: av.VideoFrame | None = None
    for index in distinct:
        keyframe = info.keyframes[bisect_right(info.keyframes, index) - 1]
        if did_seek := keyframe > number + nearby:
            # seek a little behind the keyframe's time, which is not known to the tick
            following = info.seconds_at(min(keyframe + 1, info.num_frames - 1))
            seconds = 0.7 * info.seconds_at(keyframe) + 0.3 * following
            try:
                container.seek(first_pts + round(seconds / tick), stream=stream)
            except av.FFmpegError:  # for example, no packet of a Matroska file is marked as a keyframe
                yield None
                return
            frames = start()
        while number < index or did_seek:
            frame = next(frames, None)
            # the pixels that a decoder conceals depend on the frames decoded before
            if frame is None or frame.pts is None or frame.is_corrupt:
                yield None
                return
            actual = number_of(frame.pts)
            if did_seek:
                follows = frame.pict_type == PictureType.I
            else:
                follows = actual > number and skipped.issuperset(range(number + 1, actual))
            if actual > index or not follows:
                yield None
                return
            number, did_seek = actual, False
        yield frame
