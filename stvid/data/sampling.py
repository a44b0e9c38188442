"""Selects the frames of a clip: index arithmetic without pixels or files."""

from __future__ import annotations

import dataclasses
import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import numpy as np

from stvid.clip import ClipSpec
from stvid.video.types import VideoInfo

PLAYBACKS = ("normal", "frozen", "shuffled", "reversed", "half_speed", "double_speed")
SPEEDS = {"half_speed": 0.5, "double_speed": 2.0}


def stride_of(clip: ClipSpec, video_fps: float) -> float:
    """Video frames from one frame of the clip to the next; may be fractional with `clip.fps`."""
    if clip.fps is not None:
        return video_fps / clip.fps
    assert clip.frame_stride is not None  # a ClipSpec has one of them
    return float(clip.frame_stride)


def frames_between(info: VideoInfo, start: float | None, end: float | None) -> range:
    """The frames with a time in [start, end), in seconds from the first frame; None: the beginning or the end."""

    def first_from(seconds: float) -> int:
        if info.timestamps is None:
            return math.ceil(seconds * info.fps - 1e-6)
        return bisect_left(info.timestamps, seconds - 1e-6)

    first = 0 if start is None else first_from(start)
    last = info.num_frames if end is None else min(first_from(end), info.num_frames)
    return range(first, max(first, last))


def timeline(
    frames: Sequence[int], clip: ClipSpec, info: VideoInfo, *, speed: float = 1.0
) -> tuple[Sequence[int], float]:
    """The frames from which a clip is sampled, and their rate in frames per second.

    Usually the frames of the video. With `clip.fps` and a video whose frames are not evenly spaced, the frame that is
    shown at each multiple of `1 / clip.fps` seconds: so equal distances are equal times. At another speed, those that
    are shown when the video is played at this speed: at 2 every second frame, at 0.5 each frame twice.
    """
    if clip.fps is None or info.timestamps is None:
        if speed == 1:
            return frames, info.fps
        return [frames[math.floor(i * speed + 1e-9)] for i in range(math.ceil(len(frames) / speed - 1e-9))], info.fps
    begin, end = info.timestamps[frames[0]], info.timestamps[frames[-1]] + 1 / info.fps
    step = speed / clip.fps
    num_ticks = max(math.floor((end - begin) / step + 1e-6), 1)
    shown = (bisect_right(info.timestamps, begin + i * step + 1e-6) - 1 for i in range(num_ticks))
    return [min(index, frames[-1]) for index in shown], clip.fps


def resolve_num_frames(clip: ClipSpec, num_frames: int, video_fps: float) -> ClipSpec:
    """Replaces `num_frames=None` (whole video) by the number of frames that the stride takes of `num_frames`."""
    if clip.num_frames is not None:
        return clip
    stride = stride_of(clip, video_fps)
    return dataclasses.replace(clip, num_frames=math.floor((num_frames - 1) / stride + 1e-9) + 1)


def fastest(clip: ClipSpec, num_frames: int, video_fps: float) -> float:
    """The highest speed at which a clip fits into a video of so many frames; no limit unless `clip.short=error`."""
    if clip.short != "error" or clip.num_frames is None:
        return math.inf
    return max(num_frames / clip_span(clip, video_fps), 1.0)


def clip_span(clip: ClipSpec, video_fps: float) -> int:
    """Video frames that a clip spans, first to last inclusive: `floor((num_frames - 1) * stride) + 1`."""
    assert clip.num_frames is not None  # see `resolve_num_frames`
    return math.floor((clip.num_frames - 1) * stride_of(clip, video_fps) + 1e-9) + 1


def random_start(num_frames: int, span: int, rng: np.random.Generator) -> int:
    """A start drawn uniformly from those at which the clip fits; 0 if it does not fit."""
    return int(rng.integers(0, max(num_frames - span, 0) + 1))


def uniform_starts(num_frames: int, span: int, num_clips: int) -> list[int]:
    """Starts of `num_clips` clips at the centres of equal parts of all starts; one clip is centred in the video."""
    slack = max(num_frames - span, 0)
    return [slack * (2 * i + 1) // (2 * num_clips) for i in range(num_clips)]


def clip_indices(num_frames: int, start: int, clip: ClipSpec, video_fps: float) -> list[int]:
    """The frames of one clip: `start + floor(i * stride)`, with `clip.short` as the policy beyond the end.

    For stride 2, a clip of six frames and a video of five: `repeat_last` 0 2 4 4 4 4, `wrap` 0 2 4 0 2 4, `pad` 0 2 4.

    Args:
        num_frames: frames of the video, at least 1.
        start: first frame, 0 to num_frames - 1.
        clip: the clip's geometry.
        video_fps: the video's frames per second (used with `clip.fps`).

    Returns:
        `clip.num_frames` indices below `num_frames`; with `short=pad` possibly fewer, at least one.

    Raises:
        IndexError: the clip does not fit and `short=error`.
    """
    assert clip.num_frames is not None  # see `resolve_num_frames`
    stride = stride_of(clip, video_fps)
    indices = [start + math.floor(i * stride + 1e-9) for i in range(clip.num_frames)]
    if indices[-1] < num_frames:
        return indices
    if clip.short == "repeat_last":
        return [min(index, num_frames - 1) for index in indices]
    if clip.short == "wrap":
        inside = [index for index in indices if index < num_frames]
        return [inside[i % len(inside)] for i in range(clip.num_frames)]
    if clip.short == "pad":
        return [index for index in indices if index < num_frames]
    raise IndexError(f"the clip ends at frame {indices[-1]}, the video has {num_frames}, and clip.short is 'error'")


def view_frames(
    frames: Sequence[int],
    fps: float,
    clip: ClipSpec,
    info: VideoInfo,
    num_clips: int,
    *,
    playback: str = "normal",
    rng: np.random.Generator | None = None,
) -> list[list[int]]:
    """The frames of each of `num_clips` uniformly spaced clips: everything that a held-out video's views show.

    Args:
        frames: of the video, or of a part of it, see `timeline`.
        fps: their rate.
        clip: the clip's geometry.
        info: of the file.
        num_clips: at least 1.
        playback: one of `PLAYBACKS`.
        rng: for `playback=shuffled`.

    Returns:
        For each clip its frame numbers within the file; for difference images, `earlier_frames` stand before them.
    """
    clip = resolve_num_frames(clip, len(frames), fps)
    clips = []
    for start in uniform_starts(len(frames), clip_span(clip, fps), num_clips):
        selected = [frames[i] for i in clip_indices(len(frames), start, clip, fps)]
        selected = reorder_frames(selected, playback, rng)
        earlier = earlier_frames(selected, frames, clip, info, playback=playback, speed=playback_speed(playback))
        clips.append(earlier + selected)
    return clips


def diff_frames(clip: ClipSpec, video_fps: float) -> int:
    """Video frames between the two frames of a difference image; 0 for `input=rgb`."""
    return 0 if clip.input == "rgb" else max(round(clip.diff_seconds * video_fps), 1)


def earlier_frames(
    frames: Sequence[int],
    allowed: Sequence[int],
    clip: ClipSpec,
    info: VideoInfo,
    *,
    playback: str = "normal",
    speed: float = 1.0,
) -> list[int]:
    """For each frame of a clip the earlier frame of its difference image; empty for `input=rgb`.

    The earlier frame is `clip.diff_seconds` before, at least one frame, but not before the first allowed frame. In a
    reversed video it is the later frame; in a frozen video it is the frame itself. Shuffled frames, and frames that
    `clip.short=wrap` repeats, keep their own earlier frame: no difference image shows a jump.

    Args:
        frames: frame numbers of the clip within the file.
        allowed: frame numbers of the item, ascending.
        clip: the clip's geometry.
        info: of the file.
        playback: one of `PLAYBACKS`.
        speed: at which the video is played: at 2, the earlier frame is twice as much earlier.
    """
    seconds, sign = clip.diff_seconds * speed, -1 if playback == "reversed" else 1
    distance = diff_frames(clip, info.fps * speed)
    if not distance:
        return []
    if playback == "frozen":
        return list(frames)
    earlier = [frame - sign * distance for frame in frames]
    if info.timestamps is not None:
        times = [info.timestamps[frame] - sign * seconds for frame in frames]
        shown = [bisect_right(info.timestamps, time + 1e-6) - 1 for time in times]
        earlier = [min(a, f - 1) if sign > 0 else max(a, f + 1) for a, f in zip(shown, frames, strict=True)]
    return [min(max(frame, allowed[0]), allowed[-1]) for frame in earlier]


def check_playback(playback: str) -> None:
    """Raises ValueError unless `playback` is one of PLAYBACKS."""
    if playback not in PLAYBACKS:
        raise ValueError(f"playback (={playback!r}) must be one of {', '.join(PLAYBACKS)}")


def playback_speed(playback: str) -> float:
    """Speed relative to the original video."""
    return SPEEDS.get(playback, 1.0)


def reorder_frames(indices: list[int], playback: str, rng: np.random.Generator | None) -> list[int]:
    """A clip's frames reversed, shuffled, or replaced by the middle frame (`frozen`)."""
    if playback == "reversed":
        return indices[::-1]
    if playback == "shuffled":
        assert rng is not None
        return [indices[i] for i in rng.permutation(len(indices))]
    if playback == "frozen":
        return [indices[len(indices) // 2]] * len(indices)
    return indices
