"""Writes frames to an H.264 mp4 file that every player shows and that seeks exactly; or uncompressed, to Matroska."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import OutputContainer

from stvid.files import replacing

_UNKNOWN = 2  # FFmpeg's number of a colour space, of primaries and of a transfer curve that are not stated


def write_video(
    path: str | os.PathLike,
    frames_THWC: np.ndarray,
    *,
    fps: float | Fraction,
    crf: int = 18,
    gop: int = 12,
    b_frames: int = 0,
    preset: str = "veryfast",
    threads: int = 1,
) -> None:
    """Encodes RGB frames as H.264 (yuv420p) and writes the file atomically; missing folders are created.

    Args:
        path: the file.
        frames_THWC: uint8, `T x H x W x 3`; H and W even, since yuv420p has one colour sample for 2 x 2 pixels.
        fps: frames per second.
        crf: 0 (lossless) to 51; 18 is almost indistinguishable from the original.
        gop: maximum distance between two keyframes; one random access decodes up to this many frames.
        b_frames: with 0, decoding order and display order are the same, so readers cannot confuse them.
        preset: of x264.
        threads: with 1, the same frames give the same bytes.

    Raises:
        ValueError: the frames or fps cannot be encoded.
    """
    path, frames_THWC = Path(path), np.asarray(frames_THWC)
    _check_frames(frames_THWC, fps)
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = (av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24") for frame in frames_THWC)
    first = next(frames)
    with (
        replacing(path) as partial,
        open_encoder(
            partial, like=first, fps=fps, crf=crf, gop=gop, b_frames=b_frames, preset=preset, threads=threads
        ) as encode,
    ):
        encode(first)
        for frame in frames:
            encode(frame)


@contextmanager
def open_encoder(
    path: str | os.PathLike,
    *,
    like: av.VideoFrame,
    fps: float | Fraction,
    crf: int,
    gop: int,
    b_frames: int = 0,
    preset: str = "veryfast",
    tune: str | None = None,
    threads: int = 1,
    tick: Fraction | None = None,
    comment: str = "",
    uncompressed: bool = False,
) -> Iterator[Callable[[av.VideoFrame], None]]:
    """Yields a function that adds one frame to the file at `path`; the file is complete when the block ends.

    Args:
        like: a frame with the size and colour tags of all frames; its height and width are even.
        fps: frames per second, on average if `tick` is given.
        tune: of x264; `fastdecode` decodes twice as fast at about the same file size.
        tick: seconds, the unit of the frames' `pts`; None: `1 / fps`, and frames without `pts` are evenly spaced.
        comment: written to the file's metadata.
        uncompressed: a Matroska file of yuv420p pixels, with times that are rounded to 1 ms and rise; without it, an
            mp4 file of H.264.

    The other arguments are those of `write_video`.
    """
    tick = tick or 1 / frame_rate(fps)
    name, options = ("matroska", {"fflags": "+bitexact"}) if uncompressed else ("mp4", {})  # else a random number
    # an absolute path, since a relative one could be read as a protocol ("12:30.mp4")
    with av.open(os.path.abspath(path), mode="w", format=name, options=options) as container:
        if comment:
            container.metadata["comment"] = comment
        if uncompressed:
            stream = container.add_stream("rawvideo", rate=frame_rate(fps))
            _set_picture(stream, like, Fraction(1, 1000))
        else:
            stream = add_h264(
                container,
                like=like,
                fps=fps,
                crf=crf,
                gop=gop,
                b_frames=b_frames,
                preset=preset,
                tune=tune,
                threads=threads,
                tick=tick,
            )

        milliseconds = -1

        def encode(frame: av.VideoFrame) -> None:
            nonlocal milliseconds
            frame.time_base = tick
            if uncompressed and frame.pts is not None:
                milliseconds = max(milliseconds + 1, round(1000 * frame.pts * tick))
                frame.pts, frame.time_base = milliseconds, Fraction(1, 1000)
            container.mux(stream.encode(frame))

        yield encode
        container.mux(stream.encode(None))


def add_h264(
    container: OutputContainer,
    *,
    like: av.VideoFrame,
    fps: float | Fraction,
    crf: int,
    gop: int,
    b_frames: int = 0,
    preset: str = "veryfast",
    tune: str | None = None,
    threads: int = 1,
    tick: Fraction,
) -> av.VideoStream:
    """Adds a yuv420p track for frames with times in units of `tick`; the arguments are those of `open_encoder`."""
    # x264's macroblock tree reads uninitialised memory: with it about 1 % of the files differ in a few bytes
    options = {"crf": str(crf), "preset": preset, "mbtree": "0"} | ({"tune": tune} if tune else {})
    stream = container.add_stream("libx264", rate=frame_rate(fps), options=options)
    _set_picture(stream, like, tick)
    context = stream.codec_context
    context.gop_size, context.max_b_frames, context.thread_count = gop, b_frames, threads
    return stream


def _set_picture(stream: av.VideoStream, like: av.VideoFrame, tick: Fraction) -> None:
    """Size, colours and unit of time of a new yuv420p track."""
    stream.height, stream.width, stream.pix_fmt = like.height, like.width, "yuv420p"
    context = stream.codec_context
    context.color_range, context.colorspace = like.color_range, like.colorspace
    context.color_primaries, context.color_trc = like.color_primaries, like.color_trc
    context.time_base = tick


def valid_tag(tag: int) -> int:
    """A colour tag if H.273 defines it (0 and 3 are reserved), else unknown: damaged files have others."""
    return tag if tag == 1 or 4 <= tag <= 18 else _UNKNOWN


def frame_rate(fps: float | Fraction) -> Fraction:
    """Frames per second as files state it: 29.97 is nearly always 30000 / 1001."""
    return Fraction(fps).limit_denominator(90_000)


def _check_frames(frames_THWC: np.ndarray, fps: float | Fraction) -> None:
    shape, dtype = tuple(frames_THWC.shape), frames_THWC.dtype
    if dtype != np.uint8:
        raise ValueError(f"frames (dtype {dtype}) must be uint8")
    if len(shape) != 4 or shape[3] != 3:
        raise ValueError(f"frames (shape {shape}) must have the shape T x H x W x 3")
    if 0 in shape:
        raise ValueError(f"frames (shape {shape}) must hold at least one frame and one pixel")
    if shape[1] % 2 or shape[2] % 2:
        raise ValueError(f"frames (height {shape[1]}, width {shape[2]}) must be even in height and width for yuv420p")
    if not fps > 0:
        raise ValueError(f"fps (={fps}) must be positive")
