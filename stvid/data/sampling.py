"""Which frames of a video a clip takes: index arithmetic, no pixels, no files."""

from __future__ import annotations

import math

import numpy as np

from stvid.clip import ClipSpec

ORDERS = ("forward", "reversed", "shuffled")


def stride_of(clip: ClipSpec, video_fps: float) -> float:
    """Video frames from one frame of the clip to the next; a fraction where `clip.fps` asks for one."""
    return float(clip.frame_stride) if clip.fps is None else video_fps / clip.fps


def span(clip: ClipSpec, video_fps: float) -> int:
    """Video frames that a clip covers, first to last inclusive: `floor((num_frames - 1) * stride) + 1`."""
    return math.floor((clip.num_frames - 1) * stride_of(clip, video_fps) + 1e-9) + 1


def random_start(num_frames: int, span: int, rng: np.random.Generator) -> int:
    """A start drawn evenly from all at which the clip fits; 0 where it does not fit."""
    return int(rng.integers(0, max(num_frames - span, 0) + 1))


def spread_starts(num_frames: int, span: int, num_clips: int) -> list[int]:
    """Starts of `num_clips` clips, each in the middle of its share of all starts; a single clip is the middle one."""
    slack = max(num_frames - span, 0)
    return [slack * (2 * i + 1) // (2 * num_clips) for i in range(num_clips)]


def clip_indices(num_frames: int, start: int, clip: ClipSpec, video_fps: float) -> list[int]:
    """The frames of one clip: `start + floor(i * stride)`, with `clip.short` deciding what lies past the end.

    Args:
        num_frames: frames the video has, at least 1.
        start: first frame, 0 to num_frames - 1.
        clip: the clip's geometry.
        video_fps: the video's frames per second (used where `clip.fps` is).

    Returns:
        `clip.num_frames` indices below `num_frames`; with `short=pad` possibly fewer, never none.

    Raises:
        IndexError: the clip does not fit and `short=error`.
    """
    stride = stride_of(clip, video_fps)
    indices = [start + math.floor(i * stride + 1e-9) for i in range(clip.num_frames)]
    if indices[-1] < num_frames:
        return indices
    if clip.short == "repeat_last":
        return [min(index, num_frames - 1) for index in indices]
    if clip.short == "wrap":
        return [index % num_frames for index in indices]
    if clip.short == "pad":
        return [index for index in indices if index < num_frames]
    raise IndexError(f"the clip ends at frame {indices[-1]}, the video has {num_frames}, and clip.short is 'error'")


def reorder(indices: list[int], order: str, rng: np.random.Generator) -> list[int]:
    """The same frames in another order of time, to see whether a model uses time: `forward | reversed | shuffled`."""
    if order not in ORDERS:
        raise ValueError(f"order (={order!r}) must be one of {', '.join(ORDERS)}")
    if order == "reversed":
        return indices[::-1]
    if order == "shuffled":
        return [indices[i] for i in rng.permutation(len(indices))]
    return indices
