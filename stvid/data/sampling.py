"""Which frames of a video a clip takes: index arithmetic, no pixels, no files."""

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
    """Video frames from one frame of the clip to the next; a fraction where `clip.fps` asks for one."""
    return float(clip.frame_stride) if clip.fps is None else video_fps / clip.fps


def frames_between(info: VideoInfo, start: float | None, end: float | None) -> range:
    """The frames whose time lies in [start, end), in seconds from the first frame; None is the beginning, the end."""

    def first_from(seconds: float) -> int:
        if info.timestamps is None:
            return math.ceil(seconds * info.fps - 1e-6)
        return bisect_left(info.timestamps, seconds - 1e-6)

    first = 0 if start is None else first_from(start)
    last = info.num_frames if end is None else min(first_from(end), info.num_frames)
    return range(first, max(first, last))


def timeline(frames: range, clip: ClipSpec, info: VideoInfo) -> tuple[Sequence[int], float]:
    """What a clip is taken from: frames that may come into it, and how many of them make a second.

    The video's own frames, unless the clip wants so many a second of a video whose frames are not evenly spaced:
    then the frame that is shown at every tick of that clock, so that an equal distance is an equal time.
    """
    if clip.fps is None or info.timestamps is None:
        return frames, info.fps
    begin, end = info.timestamps[frames[0]], info.timestamps[frames[-1]] + 1 / info.fps
    num_ticks = max(math.floor((end - begin) * clip.fps + 1e-6), 1)
    shown = (bisect_right(info.timestamps, begin + i / clip.fps + 1e-6) - 1 for i in range(num_ticks))
    return [min(index, frames[-1]) for index in shown], clip.fps


def resolve_num_frames(clip: ClipSpec, num_frames: int, video_fps: float) -> ClipSpec:
    """The clip itself; where it is the whole video, one of as many frames as its stride leaves of `num_frames`."""
    if clip.num_frames is not None:
        return clip
    stride = stride_of(clip, video_fps)
    return dataclasses.replace(clip, num_frames=math.floor((num_frames - 1) / stride + 1e-9) + 1)


def span(clip: ClipSpec, video_fps: float) -> int:
    """Video frames that a clip covers, first to last inclusive: `floor((num_frames - 1) * stride) + 1`."""
    return math.floor((clip.num_frames - 1) * stride_of(clip, video_fps) + 1e-9) + 1


def random_start(num_frames: int, span: int, rng: np.random.Generator) -> int:
    """A start drawn evenly from all at which the clip fits; 0 where it does not fit."""
    return int(rng.integers(0, max(num_frames - span, 0) + 1))


def uniform_starts(num_frames: int, span: int, num_clips: int) -> list[int]:
    """Starts of `num_clips` clips, each in the middle of its share of all starts; a single clip is the middle one."""
    slack = max(num_frames - span, 0)
    return [slack * (2 * i + 1) // (2 * num_clips) for i in range(num_clips)]


def clip_indices(num_frames: int, start: int, clip: ClipSpec, video_fps: float) -> list[int]:
    """The frames of one clip: `start + floor(i * stride)`, with `clip.short` deciding what lies past the end.

    With a stride of 2, six frames of a video of five: `repeat_last` 0 2 4 4 4 4, `wrap` 0 2 4 0 2 4, `pad` 0 2 4.

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
        inside = [index for index in indices if index < num_frames]
        return [inside[i % len(inside)] for i in range(clip.num_frames)]
    if clip.short == "pad":
        return [index for index in indices if index < num_frames]
    raise IndexError(f"the clip ends at frame {indices[-1]}, the video has {num_frames}, and clip.short is 'error'")


def diff_frames(clip: ClipSpec, video_fps: float) -> int:
    """Video frames from the earlier picture of a difference image to the later; 0 where there are no such images."""
    return 0 if clip.input == "rgb" else max(round(clip.diff_seconds * video_fps), 1)


def earlier_frames(
    frames: Sequence[int], part: Sequence[int], clip: ClipSpec, info: VideoInfo, playback: str = "normal"
) -> list[int]:
    """The frames that are to be read before those of a clip: for difference images the earlier ones, else none.

    The earlier one was shown `clip.diff_seconds` before, at least one frame before, or is the part's first. In a video
    that runs backwards it lies behind, or is the last; in a frozen one it is the frame itself. A shuffled video's
    frames each keep the earlier picture that belongs to them; so do those that `clip.short=wrap` repeats, and no image
    shows the jump from the last frame back to the first.

    Args:
        frames: of the clip, as numbers within the file.
        part: that belong to the item, likewise; ascending.
        clip: the clip's geometry.
        info: of the file.
        playback: how the video is played (`playback.PLAYBACKS`).
    """
    seconds, sign = clip.diff_seconds * speed_of(playback), -1 if playback == "reversed" else 1
    back = diff_frames(clip, info.fps * speed_of(playback))
    if not back:
        return []
    if playback == "frozen":
        return list(frames)
    others = [frame - sign * back for frame in frames]
    if info.timestamps is not None:
        times = [info.timestamps[frame] - sign * seconds for frame in frames]
        shown = [bisect_right(info.timestamps, time + 1e-6) - 1 for time in times]
        others = [min(a, f - 1) if sign > 0 else max(a, f + 1) for a, f in zip(shown, frames, strict=True)]
    return [min(max(other, part[0]), part[-1]) for other in others]


def check_playback(playback: str) -> None:
    """Raises ValueError unless it is one of PLAYBACKS."""
    if playback not in PLAYBACKS:
        raise ValueError(f"playback (={playback!r}) must be one of {', '.join(PLAYBACKS)}")


def speed_of(playback: str) -> float:
    """How many times faster than the video itself."""
    return SPEEDS.get(playback, 1.0)


def at_speed(frames: Sequence[int], playback: str) -> Sequence[int]:
    """A video's frames as they follow on one another: at half speed each twice, at double speed every other one."""
    if playback == "half_speed":
        return [frame for frame in frames for _ in range(2)]
    return frames[::2] if playback == "double_speed" else frames


def rearranged(indices: list[int], playback: str, rng: np.random.Generator) -> list[int]:
    """A clip's frames: reversed, shuffled, or its middle one all the time (`frozen`)."""
    if playback == "reversed":
        return indices[::-1]
    if playback == "shuffled":
        return [indices[i] for i in rng.permutation(len(indices))]
    if playback == "frozen":
        return [indices[len(indices) // 2]] * len(indices)
    return indices
