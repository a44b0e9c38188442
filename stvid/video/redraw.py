"""Draws on every frame of a video and writes it as an mp4 file with the same times and the same sound.

redraw("walk.mov", "drawn.mp4", draw, info=probe("walk.mov"))       # draw(frame_HWC, seconds) -> frame_HWC
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch
from av.codec.context import Flags
from av.container import OutputContainer
from av.video.reformatter import ColorRange, VideoReformatter

from stvid.device import num_cores
from stvid.errors import TRUNCATED, UNREADABLE, InputError, VideoError
from stvid.files import file_in_the_way, replacing, why_not_writable
from stvid.video.container import open_video
from stvid.video.decoding import decode, demux
from stvid.video.images import iter_images
from stvid.video.orientation import turn_upright
from stvid.video.probe import probe
from stvid.video.reader import FrameConverter
from stvid.video.sound import add_sound
from stvid.video.types import VideoInfo, check_unchanged, frame_limit
from stvid.video.writer import add_h264, frame_rate, valid_tag

Draw = Callable[[np.ndarray, float], np.ndarray]

_SUFFIXES = (".mp4", ".m4v", ".mov")
_CRF = 20
_KEYFRAME_SECONDS = 2
_MAX_TICKS = 1_000_000  # a second; mp4 counts up to 2 ** 32
_MATRICES = {1: "ITU709", 4: "FCC", 5: "ITU601", 6: "ITU601", 7: "SMPTE240M", 9: "BT2020"}  # by FFmpeg's numbers
_RGB, _BT601, _UNKNOWN = 0, 6, 2
_FREE_CLOCKS = ("mpegts", "mpeg")  # containers whose times start anywhere


def check_target(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Checks, before hours of work, that a file can be written as the redrawn copy of a source.

    Raises:
        InputError: it has no name of an mp4 file, is a folder or the source (also through links), or its folder cannot
            be made or written.
    """
    target = Path(target)
    if target.suffix.lower() not in _SUFFIXES:
        raise InputError(f"{target}: the video is written as an mp4 file; give it a name that ends in .mp4")
    if target.is_dir():
        raise InputError(f"{target} is a folder; give the video the name of a file")
    if target.exists() and os.path.samefile(source, target):
        raise InputError(f"{target} is the source itself, which would be overwritten; give the video another name")
    if file := file_in_the_way(target.parent):
        raise InputError(f"{target} cannot be written: {file} is a file; give another folder")
    if reason := why_not_writable(target.parent):
        raise InputError(f"{target} cannot be written: {reason}; give another folder")


def redraw(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    draw: Draw,
    *,
    info: VideoInfo,
    max_pixels: int | None = None,
    comment: str = "",
    advance: Callable[[], object] = lambda: None,
) -> None:
    """Decodes every frame, draws on it and writes it as H.264 (yuv420p); memory does not grow with the length.

    Frames keep their times, and the sound its own. MPEG-TS and MPEG-PS start at an arbitrary time, which becomes 0; so
    does a first frame before 0, which players would not show. An odd height or width is enlarged by one row or column.
    The target appears when it is complete; an unfinished one never appears.

    Args:
        source: a video file, or a folder of images.
        target: the mp4 file; missing folders are created.
        draw: takes a frame, uint8 `H x W x 3`, RGB, upright, and its time in seconds of the file's clock (the time
            stamp of the first frame plus `info.seconds_at`), and returns the frame to write, of the same shape and
            type. It may change the frame that it gets.
        info: the result of `probe`.
        max_pixels: of a frame of the source, see `read_frames`.
        comment: kept in the file, see `read_comment`.
        advance: called after each frame.

    Raises:
        InputError: see `check_target`.
        VideoError: the source cannot be read, or has fewer frames than `info.num_frames`.
        OSError: the target cannot be written.
    """
    check_target(source, target)
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as partial:
        try:
            _write(partial, _Source(source, info, frame_limit(info, max_pixels)), draw, comment, advance)
        except av.FFmpegError as error:
            if isinstance(error, OSError):  # a problem of the disk, not of the video
                raise
            raise VideoError(source, UNREADABLE, f"its frames cannot be encoded: {error}") from error
        num_frames = probe(partial, decode_all=False).num_frames
        if num_frames != info.num_frames:
            raise VideoError(source, UNREADABLE, f"its copy has {num_frames} frames instead of {info.num_frames}")


def read_comment(path: str | os.PathLike[str]) -> str:
    """The comment that `redraw` wrote into a file; empty if there is none, or the file is no video."""
    try:
        with open_video(path) as (container, _):
            return container.metadata.get("comment", "")
    except VideoError:
        return ""


def _write(partial: Path, source: _Source, draw: Draw, comment: str, advance: Callable[[], object]) -> None:
    items = iter(source)
    first = next(items)
    assert isinstance(first, _Frame)
    origin = min(first.time, Fraction(0)) if source.clock_start is None else source.clock_start
    tick, converter = source.tick, VideoReformatter()
    # in ticks of the file, it states which tracks do not start at 0; FFmpeg's default are milliseconds
    options = {"movie_timescale": str(min(math.lcm(tick.denominator, 1000), _MAX_TICKS))}
    with av.open(os.path.abspath(partial), mode="w", format="mp4", options=options) as container:
        if comment:
            container.metadata["comment"] = comment
        stream = add_h264(
            container,
            like=_to_yuv420p(first.pixels_HWC, first, converter),
            fps=source.info.fps,
            crf=_CRF,
            gop=max(round(_KEYFRAME_SECONDS * source.info.fps), 1),
            threads=num_cores(),
            tick=tick,
        )
        stream.codec_context.flags |= Flags.frame_duration
        sound = add_sound(container, source.path, source.sound, origin=origin)
        for item in chain([first], items):
            if isinstance(item, av.Packet):
                if item.stream.index in sound:
                    _mux_sound(container, sound[item.stream.index].convert(item))
                continue
            shape = item.pixels_HWC.shape
            pixels_HWC = draw(item.pixels_HWC, float(item.time))
            assert pixels_HWC.shape == shape, "draw changed the shape"
            assert pixels_HWC.dtype == np.uint8, "draw changed the type"
            frame = _to_yuv420p(pixels_HWC, first, converter)
            frame.pts, frame.time_base = round((item.time - origin) / tick), tick
            frame.duration = round(item.duration / tick)
            container.mux(stream.encode(frame))
            advance()
        container.mux(stream.encode(None))
        for track in sound.values():
            _mux_sound(container, track.convert(None))


def _mux_sound(container: OutputContainer, packets: Iterable[av.Packet]) -> None:
    """Writes packets of sound. Those that the file cannot take are damaged, and are left out."""
    for packet in packets:
        try:
            container.mux(packet)
        except av.FFmpegError as error:
            if isinstance(error, OSError):  # a problem of the disk
                raise


class _Frame(NamedTuple):
    pixels_HWC: np.ndarray  # uint8 RGB, upright
    time: Fraction  # seconds of the file's clock
    duration: Fraction  # seconds
    tags: av.VideoFrame | None  # the decoded frame with its colour tags; None for images


class _Source:
    """Yields the frames of a video, each before the packets of sound that lie before it in the file.

    As a generator it does not catch errors of the target, which are not errors of the source. The attributes below have
    their values when the first frame is there.

    Attributes:
        tick: seconds; the times of the frames are multiples of it, as far as they are not rounded in the file.
        clock_start: seconds; start of a clock that does not start at 0, else None.
        sound: tracks.
    """

    def __init__(self, path: str | os.PathLike[str], info: VideoInfo, limit: int):
        self.path, self.info, self.limit = path, info, limit
        self.tick = 1 / frame_rate(info.fps)
        self.clock_start: Fraction | None = None
        self.sound: list[av.AudioStream] = []

    def __iter__(self) -> Iterator[_Frame | av.Packet]:
        return self._images() if self.info.codec == "images" else self._decoded()

    def _images(self) -> Iterator[_Frame]:
        info, size = self.info, (self.info.height, self.info.width)
        pictures = iter_images(
            self.path, range(info.num_frames), info=info, size=size, shrunk=False, max_pixels=self.limit
        )
        for number, pixels_HWC in pictures:
            yield _Frame(pixels_HWC, number * self.tick, self.tick, None)

    def _decoded(self) -> Iterator[_Frame | av.Packet]:
        path, info = self.path, self.info
        check_unchanged(path, info)
        number, start = -1, Fraction(0)
        converter = FrameConverter(info, (info.height, info.width))
        waiting: list[av.Packet] = []  # sound, until the next frame
        with open_video(path, max_pixels=self.limit) as (container, stream):
            self.sound = list(container.streams.audio)
            time_base = stream.time_base or Fraction(1)
            self.tick = _common_tick(time_base, self.tick)
            if container.format.name in _FREE_CLOCKS:
                tracks = (stream, *self.sound)
                starts = [t.start_time * t.time_base for t in tracks if t.start_time is not None and t.time_base]
                self.clock_start = min(starts, default=None)
            packets = demux(container, stream, *self.sound)
            for number, frame in enumerate(decode(path, _video_only(packets, stream, waiting))):
                if number == 0:
                    start = (frame.pts or 0) * time_base
                if number < info.num_frames:
                    pixels_1HWC = torch.from_numpy(converter(frame))[None]
                    upright_1HWC = turn_upright(pixels_1HWC, info.rotation, info.mirrored)
                    time = _time_of(frame, number, time_base=time_base, start=start, info=info)
                    yield _Frame(upright_1HWC[0].numpy().copy(), time, frame.duration * time_base, frame)
                yield from waiting
                waiting.clear()
            yield from waiting
        if number + 1 < info.num_frames:
            raise VideoError(path, TRUNCATED, f"it ends after {number + 1} frames of {info.num_frames}")


def _video_only(packets: Iterable[av.Packet], stream: av.VideoStream, waiting: list[av.Packet]) -> Iterator[av.Packet]:
    """Yields the packets of `stream`; those of other tracks go to `waiting`."""
    for packet in packets:
        if packet.stream is stream:
            yield packet
        elif packet.size:
            waiting.append(packet)


def _common_tick(time_base: Fraction, frame_time: Fraction) -> Fraction:
    """The largest unit in which the file's time stamps and evenly spaced frames have whole times.

    The unit of the file, where that would be too fine.
    """
    numerator = math.gcd(time_base.numerator * frame_time.denominator, frame_time.numerator * time_base.denominator)
    tick = Fraction(numerator, time_base.denominator * frame_time.denominator)
    return tick if tick.denominator <= _MAX_TICKS else time_base


def _time_of(frame: av.VideoFrame, number: int, *, time_base: Fraction, start: Fraction, info: VideoInfo) -> Fraction:
    """Seconds of the file's clock: the frame's time stamp, or where that is missing or wrong, what `info` says.

    `probe` measures the times of all frames: a time stamp that is half a frame away from them is wrong.
    """
    expected = info.seconds_at(number)
    if frame.pts is not None:
        time = frame.pts * time_base
        if abs(float(time - start) - expected) * info.fps < 0.5:
            return time
    return start + Fraction(expected)


def _to_yuv420p(pixels_HWC: np.ndarray, like: _Frame, converter: VideoReformatter) -> av.VideoFrame:
    """The frame to encode, with the colour tags of the source; an odd side is enlarged by one row or column."""
    height, width = pixels_HWC.shape[:2]
    pixels_HWC = np.pad(pixels_HWC, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    tags = like.tags
    matrix = _BT601 if tags is None or tags.format.is_rgb or tags.colorspace == _RGB else tags.colorspace
    result = converter.reformat(
        av.VideoFrame.from_ndarray(pixels_HWC, format="rgb24"),
        format="yuv420p",
        dst_colorspace=_MATRICES.get(matrix, "ITU601"),  # type: ignore[arg-type] # names work too
        dst_color_range=ColorRange.MPEG,
        threads=1,
    )
    result.color_range, result.colorspace = ColorRange.MPEG, matrix if matrix in _MATRICES else _UNKNOWN
    if tags is not None:
        result.color_primaries, result.color_trc = valid_tag(tags.color_primaries), valid_tag(tags.color_trc)
    return result
