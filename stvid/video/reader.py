"""Exact frames: what `read_frames` returns at an index is what a decoder run from the first frame shows there.

    frames_TCHW = read_frames("clip.avi", [0, 2, 4, 6], info=info)

Two ways lead there. PyAV decodes forward from the first frame and stops after the last one asked for; it is always
right. decord jumps to the keyframe before an index; it is asked only where `probe` found that it can be trusted and
where jumping saves enough.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from av.video.reformatter import VideoReformatter

from stvid.video.decoding import decode, open_video
from stvid.video.errors import TRUNCATED, VideoError
from stvid.video.probe import VideoInfo, probe

# decord indexes the file before it decodes, and spends more on a frame. Measured with H.264 of 240 to 720 lines:
# opening it costs as much as 8 frames, and a frame 1.5 times what it costs PyAV.
_DECORD_OPENING, _DECORD_FRAME = 8, 1.5


def read_frames(
    path: str | os.PathLike[str],
    indices: Iterable[int],
    *,
    info: VideoInfo | None = None,
    num_threads: int = 1,
) -> torch.Tensor:
    """Decode the frames at `indices`, in that order.

    Args:
        path: video file.
        indices: frame numbers, counted from 0 in the order of display; any order, repeats allowed.
        info: what `probe` said of this file; without it the file is probed first, which can cost a full decoding.
        num_threads: of the decoder. 1 in the workers of a loader, where every core has a process already.

    Returns:
        uint8 (T, C, H, W), RGB, upright (rotation applied); a view of T x H x W x C memory.

    Raises:
        ValueError: no index, or one outside of the file.
        VideoError: the file cannot be read, or ends before a frame that `info` promises.
    """
    wanted = [operator.index(i) for i in indices]
    if not wanted:
        raise ValueError(f"{path}: no frame indices were given")
    info = info or probe(path)
    if min(wanted) < 0 or max(wanted) >= info.num_frames:
        raise ValueError(
            f"{path}: frame indices from {min(wanted)} to {max(wanted)} were asked for; "
            f"the video has {info.num_frames} frames, 0 to {info.num_frames - 1}"
        )
    distinct = sorted(set(wanted))
    frames_THWC = None
    if info.random_access and _jumping_pays(distinct, info.keyframe_interval):
        frames_THWC = _read_random(path, distinct, info=info, num_threads=num_threads)
    if frames_THWC is None:
        frames_THWC = _read_forward(path, distinct, info=info, num_threads=num_threads)
    if wanted != distinct:
        place = {index: i for i, index in enumerate(distinct)}
        frames_THWC = frames_THWC[[place[index] for index in wanted]]
    return frames_THWC.permute(0, 3, 1, 2)


def _jumping_pays(distinct: Sequence[int], keyframe_interval: int) -> bool:
    """Whether decord has less to do: from frame to frame it decodes what lies between, or since the keyframe."""
    before = [-1, *distinct[:-1]]
    decoded = sum(min(b - a, keyframe_interval) for a, b in zip(before, distinct, strict=True))
    return _DECORD_OPENING + _DECORD_FRAME * decoded < distinct[-1] + 1


def _read_forward(
    path: str | os.PathLike[str], distinct: Sequence[int], *, info: VideoInfo, num_threads: int
) -> torch.Tensor:
    """uint8 (T, H, W, C) of sorted, distinct indices, by decoding from the first frame."""
    turned = info.rotation in (90, 270)
    height, width = (info.width, info.height) if turned else (info.height, info.width)
    with open_video(path, num_threads=num_threads) as (container, stream):
        frames_THWC = torch.empty((len(distinct), height, width, 3), dtype=torch.uint8)
        pixels = frames_THWC.numpy()
        converter = VideoReformatter()  # one for all: setting it up costs more than a small frame
        todo = iter(enumerate(distinct))
        place, index = next(todo)
        number = -1
        for number, frame in enumerate(decode(path, container.demux(stream))):
            if number < index:
                continue  # not converted to RGB, which is half of the work
            # The size is told for files that change it on the way.
            plane = converter.reformat(frame, width, height, "rgb24", threads=num_threads).planes[0]
            rows = np.frombuffer(plane, np.uint8).reshape(height, plane.line_size)
            pixels[place] = rows[:, : width * 3].reshape(height, width, 3)
            place, index = next(todo, (None, None))
            if index is None:
                return torch.rot90(frames_THWC, info.rotation // 90, dims=(1, 2)) if info.rotation else frames_THWC
    raise VideoError(path, TRUNCATED, f"frame {index} of {info.num_frames} was asked for, it ends after {number + 1}")


def _read_random(
    path: str | os.PathLike[str], distinct: Sequence[int], *, info: VideoInfo, num_threads: int
) -> torch.Tensor | None:
    """uint8 (T, H, W, C) of sorted, distinct indices, by decord; None where it disagrees with `info` or fails."""
    import decord  # half a second, spent only by those who have files for it

    decord.logging.set_level(decord.logging.QUIET)
    try:
        reader = decord.VideoReader(os.path.abspath(path), num_threads=num_threads)
        if len(reader) != info.num_frames:
            return None
        frames_THWC = torch.from_numpy(reader.get_batch(distinct).asnumpy())
    except (decord.DECORDError, RuntimeError, AssertionError):
        return None  # forward decoding says what is wrong, if anything is
    expected = (len(distinct), info.height, info.width, 3)
    return frames_THWC if tuple(frames_THWC.shape) == expected else None
