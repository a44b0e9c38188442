"""A video file to segments: its windows are classified, and their probabilities merged."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from stvid.data.sampling import clip_span, timeline
from stvid.deploy.segments import DEFAULT_THRESHOLD, Segment, find_segments
from stvid.deploy.window_plan import plan_windows
from stvid.deploy.windows import VideoViews, Window, classify_windows
from stvid.errors import InputError, VideoError, nearest
from stvid.inference import Runner
from stvid.run.checkpoint import TrainedModel
from stvid.video.types import VideoInfo


@dataclass(frozen=True, kw_only=True)
class SegmentOptions:
    """How a video is divided into segments.

    Attributes:
        threshold: least probability at which a class begins, in (0, 1]; None: see `resolve_threshold`.
        window: seconds of a window; None: one clip.
        hop: seconds from one window to the next; None: a quarter of a window.
        min_duration: seconds of the shortest segment; None: half a window.
    """

    threshold: float | None = None
    window: float | None = None
    hop: float | None = None
    min_duration: float | None = None

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise InputError(f"threshold (={self.threshold}) must be above 0 and at most 1")
        if self.min_duration is not None and not self.min_duration >= 0:
            raise InputError(f"min_duration (={self.min_duration}) must be 0 or more seconds")


@dataclass(frozen=True, kw_only=True)
class VideoSegments:
    """What was recognised in one video.

    Attributes:
        segments: they cover the video; if it broke on the way, what was read of it.
        windows: in order.
        probabilities_K: of the whole video, as `Recognizer.predict` gives them; of a model of whole videos, the mean of
            the windows; None if the video broke on the way.
        error: why the video could not be read to its end, or None.
    """

    segments: list[Segment]
    windows: list[Window]
    probabilities_K: np.ndarray | None
    error: VideoError | None


def resolve_threshold(trained: TrainedModel, threshold: float | None) -> tuple[float, str]:
    """The threshold that is used, and where it is from: given, fitted by `stvid evaluate --calibrate`, or 0.5."""
    if threshold is not None:
        return threshold, "given"
    if trained.threshold is not None:
        return trained.threshold, "fitted on val"
    return DEFAULT_THRESHOLD, "the default; stvid evaluate RUN --calibrate fits one"


def segment_video(
    trained: TrainedModel,
    path: str | os.PathLike[str],
    *,
    info: VideoInfo,
    runner: Runner,
    options: SegmentOptions,
    batch_size: int | None = None,
    on_window: Callable[[Window], object] = lambda window: None,
) -> VideoSegments:
    """Reads a video once and divides it into segments.

    Of the video only the frames of a few windows are in memory, however long it is; of each window, its probabilities
    are kept: at most 8 bytes per class and window.

    Args:
        trained: the model.
        path: a video file, or a folder of images.
        info: the result of `probe`.
        runner: the model on its device.
        options: see `SegmentOptions`.
        batch_size: views per forward pass; None: as in training.
        on_window: called with each window, as soon as it is classified.

    Raises:
        VideoError: not one window can be read.
        InputError: see `plan_windows`.
    """
    limits = {"window": options.window, "hop": options.hop}
    plan = plan_windows(trained, info, path=path, **limits)
    views = None if trained.clip.num_frames is None else VideoViews(trained, info)
    windows: list[Window] = []
    error = None
    try:
        for window in classify_windows(
            trained, path, info=info, runner=runner, views=views, batch_size=batch_size, **limits
        ):
            windows.append(window)
            on_window(window)
    except VideoError as stopped:
        if not windows:
            raise
        error = stopped
    probabilities_WK = np.stack([window.probabilities_K for window in windows])
    windows = [  # without copies of the probabilities
        replace(window, probabilities_K=row) for window, row in zip(windows, probabilities_WK, strict=True)
    ]
    seconds = plan.length / plan.fps
    segments = find_segments(
        probabilities_WK,
        np.array([(window.start + window.end) / 2 for window in windows]),
        class_names=trained.class_names,
        start=windows[0].start,
        end=windows[-1].end,
        threshold=resolve_threshold(trained, options.threshold)[0],
        min_duration=seconds / 2 if options.min_duration is None else options.min_duration,
    )
    probabilities_K = None
    if error is None:
        probabilities_K = views.classify(runner) if views else probabilities_WK.mean(axis=0)
    return VideoSegments(segments=segments, windows=windows, probabilities_K=probabilities_K, error=error)


def num_clips_in(trained: TrainedModel, info: VideoInfo) -> float:
    """Length of a video in clips of the model; 1 for a model of whole videos."""
    if trained.clip.num_frames is None:
        return 1.0
    frames, fps = timeline(range(info.num_frames), trained.clip, info)
    return len(frames) / clip_span(trained.clip, fps)


def check_classes(names: Sequence[str], class_names: Sequence[str], *, option: str) -> None:
    """Raises InputError for a name that is no class of the model."""
    for name in names:
        if name not in class_names:
            raise InputError(f"{option} {name}: the model has no such class{nearest(name, class_names)}")
