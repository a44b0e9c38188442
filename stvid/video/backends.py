"""Optional decoders beside PyAV: decord, which comes with stvid on most platforms, and torchcodec, an extra.

Both number frames by index or time stamp, which is wrong for some files (MPEG-4 with B-frames, many AVI files). So
they are asked only where `probe` trusts random access; elsewhere, and where they fail, PyAV reads.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence

import torch

from stvid.video.info import VideoInfo

BACKENDS = ("pyav", "decord", "torchcodec")
INSTALL = {
    "pyav": "pip install av",
    "decord": "pip install decord2 (x86-64 and ARM Linux, x86-64 Windows, Apple silicon)",
    "torchcodec": "pip install 'stvid[torchcodec]'",
}


def is_installed(backend: str) -> bool:
    """Whether a backend's package is there (torchcodec also needs the system's FFmpeg libraries)."""
    return importlib.util.find_spec({"pyav": "av"}.get(backend, backend)) is not None


def read_by_backend(
    backend: str, path: str | os.PathLike[str], distinct: Sequence[int], *, info: VideoInfo, num_threads: int
) -> torch.Tensor | None:
    """uint8 (T, H, W, C) of sorted, distinct indices at native size; None where the backend is not to be trusted.

    Raises:
        ImportError: the backend, or a library that it needs, is not installed.
    """
    read = {"decord": _read_decord, "torchcodec": _read_torchcodec}[backend]
    frames_THWC = read(os.path.abspath(path), distinct, info=info, num_threads=num_threads)
    expected = (len(distinct), info.height, info.width, 3)
    return frames_THWC if frames_THWC is not None and tuple(frames_THWC.shape) == expected else None


def _read_decord(file: str, distinct: Sequence[int], *, info: VideoInfo, num_threads: int) -> torch.Tensor | None:
    # it breaks in some HEVC files, gives a fourth channel to some rotated ones, and rounds deep pixels its own way
    if info.codec == "hevc" or info.rotation or info.pixel_format.endswith(("le", "be")):
        return None
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    try:
        reader = decord.VideoReader(file, num_threads=num_threads)
        return torch.from_numpy(reader.get_batch(distinct).asnumpy()) if len(reader) == info.num_frames else None
    except (decord.DECORDError, RuntimeError, AssertionError):
        return None


def _read_torchcodec(file: str, distinct: Sequence[int], *, info: VideoInfo, num_threads: int) -> torch.Tensor | None:
    from torchcodec.decoders import VideoDecoder

    try:
        decoder = VideoDecoder(file, num_ffmpeg_threads=num_threads, dimension_order="NHWC", seek_mode="exact")
        return decoder.get_frames_at(list(distinct)).data if len(decoder) == info.num_frames else None
    except (RuntimeError, ValueError, IndexError):
        return None
