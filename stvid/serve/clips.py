"""The clips of a video for a request: how much memory they take, and reading them.

V views   T frames   C channels   H, W height and width
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from stvid.data.dataset import Failure
from stvid.data.manifest import Item
from stvid.data.sampling import resolve_num_frames, timeline
from stvid.errors import InputError, VideoError
from stvid.inference import make_views
from stvid.preprocess import crop_box, reading_size
from stvid.run.checkpoint import MAX_CLIP_PIXELS, TrainedModel
from stvid.video.probe import probe
from stvid.video.reader import scaled_size
from stvid.video.types import VideoInfo

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


def probe_and_measure(
    trained: TrainedModel, path: Path, *, num_clips: int, num_crops: int, seconds: float | None = None
) -> tuple[VideoInfo, int]:
    """Properties of a file, and the pixels in memory while its views are read: a file can lie about anything.

    Args:
        trained: the model.
        path: the file.
        num_clips, num_crops: the views that are in memory at once.
        seconds: of the file, that a view of a model of whole videos shows; None: all.

    Raises:
        VideoError: the file cannot be read.
        InputError: more pixels than a client may ask for.
    """
    info = probe(path, decode_all=False, max_pixels=trained.max_pixels)
    clip, (height, width) = trained.clip, trained.clip.size
    if clip.fps is not None and (ticks := (info.end - info.start) * clip.fps) > MAX_TICKS:
        raise InputError(f"the video lasts {ticks / clip.fps:g} s, and at {clip.fps:g} frames/s that is too long")
    frames, fps = timeline(range(info.num_frames), clip, info)
    num_frames = len(frames) if seconds is None else round(min(seconds * fps, len(frames)))
    num_pictures = (resolve_num_frames(clip, num_frames, fps).num_frames or 1) * (1 if clip.input == "rgb" else 2)
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
