"""Frames to an H.264 mp4 file that every player shows and that can be sought exactly."""

import os
import uuid
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


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
    """Encode RGB frames as H.264 (yuv420p) and put the finished file at `path`, whose folders are made if need be.

    frames_THWC: uint8, `T x H x W x 3`; H and W even, as yuv420p has one colour sample for 2 x 2 pixels.
    fps: frames a second. crf: 0 (lossless) to 51; 18 is hard to tell from the original.
    gop: the longest distance of two key frames, which is what a random access costs to decode.
    b_frames: 0 keeps decoding order and showing order the same, so that no reader can confuse them.
    threads: with 1, the same frames give the same bytes.

    The file appears whole or not at all: it is written beside `path` and then moved there.
    Raises ValueError if the frames or fps cannot be encoded.
    """
    path, frames_THWC = Path(path), np.asarray(frames_THWC)
    _check(frames_THWC, fps)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.part")
    options = {"crf": str(crf), "preset": preset}
    try:
        with av.open(str(part), mode="w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(90_000), options=options)
            stream.height, stream.width, stream.pix_fmt = *frames_THWC.shape[1:3], "yuv420p"
            stream.codec_context.gop_size = gop
            stream.codec_context.max_b_frames = b_frames
            stream.codec_context.thread_count = threads
            for frame_HWC in frames_THWC:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_HWC), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _check(frames_THWC: np.ndarray, fps: float | Fraction) -> None:
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
