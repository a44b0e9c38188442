"""Where the windows of a video lie, and which frames each of them shows: index arithmetic without pixels."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from stvid.clip import ClipSpec
from stvid.data import sampling
from stvid.errors import InputError
from stvid.run.checkpoint import TrainedModel
from stvid.video.types import VideoInfo

MAX_SECONDS = 1e9  # 30 years: of a window, and from one to the next


@dataclass(frozen=True, kw_only=True)
class WindowPlan:
    """Where the windows of a video lie, and which frames each of them shows.

    Attributes:
        info: of the file.
        clip: the clip's geometry.
        frames: of the whole video, see `sampling.timeline`.
        fps: their rate.
        length: of a window, in frames of the timeline.
        hop: from one window to the next, in frames of the timeline.
        num_clips: clips spread over each window.
    """

    info: VideoInfo
    clip: ClipSpec
    frames: Sequence[int]
    fps: float
    length: int
    hop: int
    num_clips: int

    @property
    def starts(self) -> list[int]:
        """First positions of the windows: 0, hop, 2 hop, ..., and one whose window ends with the video."""
        last = len(self.frames) - self.length
        starts = list(range(0, last + 1, self.hop))
        return starts if starts[-1] == last else [*starts, last]

    def clips(self, start: int) -> list[list[int]]:
        """Frame numbers of the clips of a window, see `sampling.view_frames`."""
        part = self.frames[start : start + self.length]
        return sampling.view_frames(part, self.fps, self.clip, self.info, self.num_clips)

    def seconds(self, position: int) -> float:
        """Time at which a frame of the timeline begins, on the file's own clock; behind the last one, its end."""
        if position >= len(self.frames):
            return self.info.end
        if self.clip.fps is not None and self.info.timestamps is not None:
            return self.info.start + self.info.seconds_at(self.frames[0]) + position / self.fps
        return self.info.start + self.info.seconds_at(self.frames[position])

    def needed_frames(self) -> Iterator[int]:
        """The frames of all windows, ascending and distinct; computed while they are taken."""
        pending: set[int] = set()
        starts = self.starts
        for start, following in zip(starts, [*starts[1:], None], strict=True):
            pending.update(frame for clip in self.clips(start) for frame in clip)
            bound = self.info.num_frames if following is None else self.frames[following]
            ready = sorted(frame for frame in pending if frame < bound)
            pending.difference_update(ready)
            yield from ready


def plan_windows(
    trained: TrainedModel,
    info: VideoInfo,
    *,
    path: str | os.PathLike[str],
    window: float | None = None,
    hop: float | None = None,
) -> WindowPlan:
    """The windows of a video.

    Args:
        trained: the model; a window shows as many clips as the run's validation takes of a video, spread over it.
        info: of the file.
        path: the file, for messages.
        window: seconds of a window; None: one clip.
        hop: seconds from one window to the next; None: a quarter of a window.

    Raises:
        InputError: a window or hop of 0 or less, or above `MAX_SECONDS`; no window for a model of whole videos; a
            window shorter than a clip; a hop longer than a window; a video shorter than a clip with `clip.short=error`.
    """
    for name, value in (("window", window), ("hop", hop)):
        if value is not None and not 0 < value <= MAX_SECONDS:
            raise InputError(f"{name} (={value}) must be above 0 and at most {MAX_SECONDS:g} seconds")
    clip = trained.clip
    frames, fps = sampling.timeline(range(info.num_frames), clip, info)
    if window is None and clip.num_frames is None:
        raise InputError(
            f"{path}: the model classifies whole videos (clip.num_frames=null), so the length of a window must be "
            "given: --window SECONDS, or window=SECONDS"
        )
    length = sampling.clip_span(clip, fps) if window is None else max(round(window * fps), 1)
    span = 1 if clip.num_frames is None else sampling.clip_span(clip, fps)
    if length < span:
        raise InputError(
            f"window (={window:g}) is shorter than a clip of this model, which spans {span / fps:g} s of {path}"
        )
    if len(frames) < span and clip.short == "error":
        raise InputError(f"{path} has {len(frames)} frames, a clip spans {span}, and clip.short=error")
    hop_frames = max(length // 4, 1) if hop is None else max(round(hop * fps), 1)
    if hop_frames > length:
        raise InputError(
            f"hop (={hop:g}) is longer than a window, which is {length / fps:g} s of {path}: what lies between "
            "two windows would not be seen"
        )
    length = min(length, len(frames))
    num_clips = trained.protocol["num_clips"] if length > span and clip.num_frames is not None else 1
    return WindowPlan(info=info, clip=clip, frames=frames, fps=fps, length=length, hop=hop_frames, num_clips=num_clips)
