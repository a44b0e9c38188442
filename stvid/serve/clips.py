"""The clips of a video for a request: how much memory they take, and reading them.

V views   T frames   C channels   H, W height and width
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from stvid.data.dataset import Failure
from stvid.data.manifest import Item
from stvid.data.sampling import resolve_num_frames, timeline
from stvid.deploy.segmentation import SegmentOptions
from stvid.deploy.window_plan import plan_windows
from stvid.deploy.windows import READ_AHEAD
from stvid.errors import InputError, VideoError
from stvid.inference import make_views
from stvid.preprocess import crop_box, reading_size
from stvid.run.checkpoint import MAX_CLIP_PIXELS, TrainedModel
from stvid.video.probe import probe
from stvid.video.reader import scaled_size
from stvid.video.types import VideoInfo

MAX_WINDOWS = 100_000  # of a video: 4 hours with a window every 0.16 s
MAX_TICKS = 10**6  # of the timeline of a video, with `clip.fps`


def read_views(
    trained: TrainedModel, path: Path, info: VideoInfo, *, num_clips: int | None, num_crops: int | None
) -> Tensor:
    """The views of a file as `Recognizer.predict` takes them: uint8 `V x T x C x H x W`.

    Raises:
        VideoError: the file cannot be read.
        InputError: see `Recognizer.predict`.
    """
    item = Item(path=str(path), label="", split="test")
    sample = make_views(trained, [item], [info], num_clips=num_clips, num_crops=num_crops)[0]
    if isinstance(sample, Failure):
        raise VideoError(path, sample.reason, sample.detail)
    return sample["clips"]


@dataclass(frozen=True, kw_only=True)
class WindowMemory:
    """What the windows of a video need.

    Attributes:
        num_pixels: in memory at a time.
        batch_size: views that may go through the model together.
    """

    num_pixels: int
    batch_size: int


def probe_and_measure(trained: TrainedModel, path: Path, *, num_clips: int, num_crops: int) -> tuple[VideoInfo, int]:
    """Properties of a file, and the pixels in memory while its views are read: a file can lie about anything.

    Raises:
        VideoError: the file cannot be read.
        InputError: more pixels than a client may ask for.
    """
    info = _probe(trained, path)
    clip, (height, width) = trained.clip, trained.clip.size
    frames, fps = timeline(range(info.num_frames), clip, info)
    num_pictures = (resolve_num_frames(clip, len(frames), fps).num_frames or 1) * (1 if clip.input == "rgb" else 2)
    box = crop_box(info.height, info.width, clip.size, num_crops=num_crops)
    read_height, read_width = scaled_size(info, reading_size(info.height, info.width, box, clip.size))
    num_read = min(num_clips * num_pictures, info.num_frames)
    pixels = num_clips * num_crops * num_pictures * height * width + num_read * read_height * read_width
    if pixels > MAX_CLIP_PIXELS:
        raise InputError(
            f"{num_clips} clips with {num_crops} crops of {num_pictures} frames are {pixels:,} pixels, and this "
            f"service takes {MAX_CLIP_PIXELS:,} at once; ask for fewer clips, or send a shorter video or a narrower one"
        )
    return info, pixels


def probe_and_measure_windows(
    trained: TrainedModel, path: Path, options: SegmentOptions, *, batch_size: int, max_windows: int
) -> tuple[VideoInfo, WindowMemory]:
    """Properties of a file, and what its windows need; for large windows, fewer go through the model together.

    Args:
        trained: the model.
        path: the file.
        options: its window and hop.
        batch_size: views that may go through the model together if they are small.
        max_windows: that a client may ask for.

    Raises:
        VideoError: the file cannot be read.
        InputError: see `plan_windows`; too many windows; a window of more pixels than the service takes.
    """
    info = _probe(trained, path)
    plan = plan_windows(trained, info, path=path, window=options.window, hop=options.hop)
    if (num_windows := len(plan.starts)) > max_windows:
        raise InputError(
            f"these are {num_windows:,} windows, and this service computes {max_windows:,} for an answer; ask for a "
            "longer hop"
        )
    height, width = trained.clip.size
    clips = plan.clips(0)
    num_views, frame = len(clips) * trained.protocol["num_crops"], trained.protocol["num_crops"] * height * width
    window = frame * sum(map(len, clips))
    fixed = frame * (len({number for clip in clips for number in clip}) + READ_AHEAD)
    if trained.clip.num_frames is not None:  # see `VideoViews`: the frames, the views, and those as one tensor
        fixed += 3 * frame * trained.protocol["num_clips"] * len(clips[0])
    num_fitting = (MAX_CLIP_PIXELS - fixed) // (2 * window)  # each is copied once, into the batch
    if num_fitting < 1:
        raise InputError(
            f"a window of {plan.length / plan.fps:g} s takes {fixed + 2 * window:,} pixels, and this service takes "
            f"{MAX_CLIP_PIXELS:,} at once; ask for a shorter window"
        )
    num_together = min(math.ceil(batch_size / num_views), num_fitting, num_windows)
    return info, WindowMemory(num_pixels=fixed + 2 * num_together * window, batch_size=num_together * num_views)


def _probe(trained: TrainedModel, path: Path) -> VideoInfo:
    """Properties of a file, whose timeline is of a possible length."""
    info = probe(path, decode_all=False, max_pixels=trained.max_pixels)
    fps = trained.clip.fps
    if fps is not None and (ticks := (info.end - info.start) * fps) > MAX_TICKS:
        raise InputError(f"the video lasts {ticks / fps:g} s, and at {fps:g} frames/s that is too long")
    return info
