"""Items to tensors: one random clip of a video for training, all its views for evaluation.

V views of one video   B clips in a batch   T frames   C channels   H, W height and width
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from stvid.clip import ClipSpec
from stvid.data import sampling
from stvid.data.manifest import Item
from stvid.data.sampler import SampleKey, as_draw
from stvid.data.sampling import at_speed, check_playback, rearranged
from stvid.errors import EMPTY, VideoError
from stvid.preprocess import as_input, crop_and_resize, crop_box, reading_size
from stvid.video.reader import read_frames
from stvid.video.types import VideoInfo

if TYPE_CHECKING:  # it imports torchvision, which evaluation does without
    from stvid.data.transforms import Augment


class Failure(NamedTuple):
    """A video that could not be read: its position in the split, and why."""

    video: int
    path: str
    reason: str


class Sample(TypedDict):
    clips: Tensor  # uint8 V x T x C x H x W, V = 1 in training; T may be shorter than the clip's with short=pad
    label: int  # -1 where unknown
    video: int  # position of the item in its split
    path: str


class Batch(TypedDict):
    clips: Tensor  # uint8 B x T x C x H x W
    lengths: Tensor | None  # int64 B, real frames of each clip; None: all T of every clip
    labels: Tensor  # int64 B
    videos: Tensor  # int64 B
    paths: list[str]  # of the clips' files, B
    failed: list[Failure]


def part_of(item: Item, info: VideoInfo | VideoError) -> range:
    """The frames of an item, as numbers within its file.

    Raises:
        VideoError: `info` itself where it is one; empty, where no frame lies between the item's start and end.
    """
    if isinstance(info, VideoError):
        raise info
    frames = sampling.frames_between(info, item.start, item.end)
    if not frames:
        raise VideoError(item.path, EMPTY, f"no frames between {item.start or 0} s and {item.end or 'the end'} s")
    return frames


@dataclass(frozen=True, kw_only=True)
class VideoDataset(Dataset):
    """What both data sets below share: items, facts about their files, and how frames are read.

    An item is selected by a `SampleKey`, as `EpochSampler` yields, or by its index, which means its draw of epoch 0.
    Negative indices count from the end; an index past the end raises IndexError.

    Attributes:
        items: of one split, in a fixed order.
        infos: for each item what `probe` found, or the error it met.
        class_names: in the order of the model's outputs.
        clip: the clip's geometry.
        seed: with epoch and item, all that a random choice depends on.
        backend: of the reader, see `read_frames`.
    """

    items: Sequence[Item]
    infos: Sequence[VideoInfo | VideoError]
    class_names: Sequence[str]
    clip: ClipSpec
    seed: int = 0
    backend: str = "pyav"

    def __len__(self) -> int:
        return len(self.items)

    def timeline(self, index: int) -> tuple[Sequence[int], float]:
        """An item's frames, as numbers within its file, and how many of them make a second; see `sampling.timeline`.

        Raises:
            VideoError: the file cannot be read, or no frame of it lies between the item's start and end.
        """
        return sampling.timeline(part_of(self.items[index], self.infos[index]), self.clip, self.infos[index])

    def read(self, index: int, frames: Sequence[int], boxes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """For each box, all of one size, uint8 T x C x `clip.size`: that part of the given frames of the file."""
        info, size = self.infos[index], self.clip.size
        native = (info.height, info.width)
        short_side = reading_size(*native, boxes[0], size)
        pixels = read_frames(self.items[index].path, frames, info=info, short_side=short_side, backend=self.backend)
        return [crop_and_resize(pixels, box, size, native=native) for box in boxes]

    def chance(self, index: int) -> int:
        """A number that tells an item from most others, whichever split it is in and whatever stands before it.

        So a video's random draws, and the features stored of them, are the same in every fold, after others were
        added, and where all were moved.
        """
        item = self.items[index]
        path = Path(item.path)
        return zlib.crc32(repr((path.parent.name, path.stem, item.start, item.end)).encode("utf-8", "surrogateescape"))

    def failure(self, index: int, error: VideoError) -> Failure:
        return Failure(video=index, path=self.items[index].path, reason=error.reason)

    def label(self, name: str) -> int:
        return self.class_names.index(name) if name in self.class_names else -1


@dataclass(frozen=True, kw_only=True)
class TrainingClips(VideoDataset):
    """Item `SampleKey` is one clip at a random place, changed by `augment`, the same on every call."""

    augment: Augment

    def __getitem__(self, key: SampleKey | tuple[int, ...] | int) -> Sample | Failure:
        draw = as_draw(key, len(self))
        index = draw.index
        rng = np.random.default_rng((self.seed, draw.epoch, self.chance(index), draw.repeat))
        try:
            frames, fps = self.timeline(index)
            clip = sampling.resolve_num_frames(self.clip, len(frames), fps)
            start = sampling.random_start(len(frames), sampling.span(clip, fps), rng)
            box = self.augment.random_box(self.infos[index].height, self.infos[index].width, self.clip.size, rng)
            wanted = [frames[i] for i in sampling.clip_indices(len(frames), start, clip, fps)]
            wanted = sampling.earlier_frames(wanted, frames, clip, self.infos[index]) + wanted
            (pictures_TCHW,) = self.read(index, wanted, [box])
        except VideoError as error:
            return self.failure(index, error)
        pictures_TCHW, label = self.augment(pictures_TCHW, self.items[index].label, rng=rng)
        clips, path = as_input(pictures_TCHW, clip)[None], self.items[index].path
        return Sample(clips=clips, label=self.label(label), video=index, path=path)


@dataclass(frozen=True, kw_only=True)
class Views(VideoDataset):
    """Item `SampleKey` is every view of one video, clip by clip and crop by crop, decoded once; no chance in it.

    Attributes:
        num_clips: clips spread evenly over the video.
        num_crops: crops of each, see `crop_box`.
        playback: how the videos are played (`sampling.PLAYBACKS`), to test what a model makes of time.
        frames: uint8 `T x 3 x H x W`, in the place of the (only) item's file; None: files are read.
    """

    num_clips: int = 1
    num_crops: int = 1
    playback: str = "normal"
    frames: Tensor | None = None

    def __post_init__(self):
        check_playback(self.playback)

    def read(self, index: int, frames: Sequence[int], boxes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """See `VideoDataset.read`."""
        if self.frames is None:
            return super().read(index, frames, boxes)
        return [crop_and_resize(self.frames[list(frames)], box, self.clip.size) for box in boxes]

    def timeline(self, index: int) -> tuple[Sequence[int], float]:
        """At the speed at which the video is played, see `VideoDataset.timeline`."""
        frames, fps = super().timeline(index)
        return at_speed(frames, self.playback), fps

    def __getitem__(self, key: SampleKey | tuple[int, ...] | int) -> Sample | Failure:
        index = as_draw(key, len(self)).index
        try:
            frames, fps = self.timeline(index)
            clip = sampling.resolve_num_frames(self.clip, len(frames), fps)
            starts = sampling.uniform_starts(len(frames), sampling.span(clip, fps), self.num_clips)
            rng = np.random.default_rng((self.seed, self.chance(index)))
            info = self.infos[index]
            clips = [[frames[i] for i in sampling.clip_indices(len(frames), start, clip, fps)] for start in starts]
            clips = [rearranged(wanted, self.playback, rng) for wanted in clips]
            clips = [sampling.earlier_frames(wanted, frames, clip, info, self.playback) + wanted for wanted in clips]
            needed = sorted({frame for wanted in clips for frame in wanted})
            crops = self.read(index, needed, self._boxes(info))
        except VideoError as error:
            return self.failure(index, error)
        places = [torch.tensor([needed.index(i) for i in clip]) for clip in clips]
        views = torch.stack([as_input(crop[place], clip) for place in places for crop in crops])
        item = self.items[index]
        return Sample(clips=views, label=self.label(item.label), video=index, path=item.path)

    def _boxes(self, info: VideoInfo) -> list[tuple[int, ...]]:
        return [
            crop_box(info.height, info.width, self.clip.size, crop=crop, num_crops=self.num_crops)
            for crop in range(self.num_crops)
        ]


def collate(samples: Sequence[Sample | Failure]) -> Batch:
    """Samples to a batch; videos that failed are left out of the clips and named in `failed`."""
    failed = [sample for sample in samples if isinstance(sample, Failure)]
    good = [sample for sample in samples if not isinstance(sample, Failure)]
    views = [sample["clips"] for sample in good]
    longest = max((len(clips[0]) for clips in views), default=0)
    lengths = None
    if any(clips.shape[1] < longest for clips in views):
        lengths = torch.tensor([clips.shape[1] for clips in views for _ in clips])
        pad = (0, 0) * 3  # C, H and W stay
        views = [torch.nn.functional.pad(clips, (*pad, 0, longest - clips.shape[1])) for clips in views]
    counts = torch.tensor([len(clips) for clips in views], dtype=torch.int64)
    return Batch(
        clips=_together(views) if views else torch.empty(0, 0, 3, 0, 0, dtype=torch.uint8),
        lengths=lengths,
        labels=torch.tensor([sample["label"] for sample in good], dtype=torch.int64).repeat_interleave(counts),
        videos=torch.tensor([sample["video"] for sample in good], dtype=torch.int64).repeat_interleave(counts),
        paths=[sample["path"] for sample in good for _ in sample["clips"]],
        failed=failed,
    )


def _together(views: Sequence[Tensor]) -> Tensor:
    """The clips of several V x T x C x H x W tensors as one, with the colours of a pixel side by side in memory.

    That is how they come from the decoder and how convolutions like them best, so nothing is turned around on the way.
    A worker writes them where the training process can see them.
    """
    views = [clips.permute(0, 1, 3, 4, 2) for clips in views]
    shape = (sum(map(len, views)), *views[0].shape[1:])
    clips_BTHWC = torch.empty(0, dtype=torch.uint8)
    if get_worker_info() is None:
        clips_BTHWC = clips_BTHWC.new_empty(shape)
    else:
        clips_BTHWC.set_(torch.UntypedStorage._new_shared(math.prod(shape)), 0, shape)
    return torch.cat(views, out=clips_BTHWC).permute(0, 1, 4, 2, 3)
