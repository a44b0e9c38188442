"""Items to tensors: one random clip of a video for training, all its views for evaluation.

V views of one video   B clips in a batch   T frames   C channels   H, W height and width
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from stvid.clip import ClipSpec
from stvid.data import sampling
from stvid.data.manifest import Item
from stvid.data.transforms import Augment, crop_and_resize, crop_box
from stvid.video.errors import VideoError
from stvid.video.info import VideoInfo
from stvid.video.reader import read_frames


class Failure(NamedTuple):
    """A video that could not be read: its position in the split, and why."""

    video: int
    path: str
    reason: str


class Sample(TypedDict):
    clips: Tensor  # uint8 V x T x C x H x W, V = 1 in training; T may be shorter than the clip's with short=pad
    label: int  # -1 where unknown
    video: int  # position of the item in its split


class Batch(TypedDict):
    clips: Tensor  # uint8 B x T x C x H x W
    lengths: Tensor | None  # int64 B, real frames of each clip; None: all T of every clip
    labels: Tensor  # int64 B
    videos: Tensor  # int64 B
    failed: list[Failure]


@dataclass(frozen=True, kw_only=True)
class VideoDataset(Dataset):
    """What both data sets below share: items, facts about their files, and how frames are read.

    Attributes:
        items: of one split, in a fixed order.
        infos: for each item what `probe` found, or the error it met.
        class_names: in the order of the model's outputs.
        clip: the clip's geometry.
        seed: with epoch and item, all that a random choice depends on.
    """

    items: Sequence[Item]
    infos: Sequence[VideoInfo | VideoError]
    class_names: Sequence[str]
    clip: ClipSpec
    seed: int = 0

    def __len__(self) -> int:
        return len(self.items)

    def extent(self, index: int) -> tuple[int, int]:
        """First frame and number of frames of an item within its file. Raises VideoError where there are none."""
        item, info = self.items[index], self.infos[index]
        if isinstance(info, VideoError):
            raise info
        first = 0 if item.start is None else round(item.start * info.fps)
        last = info.num_frames if item.end is None else min(round(item.end * info.fps), info.num_frames)
        if last <= first:
            raise VideoError(item.path, "empty", f"no frames between {item.start} s and {item.end} s")
        return first, last - first

    def read(self, index: int, frames: Sequence[int]) -> Tensor:
        """uint8 T x C x H x W: the given frames, counted from the beginning of the file."""
        return read_frames(self.items[index].path, frames, info=self.infos[index])

    def failure(self, index: int, error: VideoError) -> Failure:
        return Failure(video=index, path=self.items[index].path, reason=error.reason)

    def label(self, name: str) -> int:
        return self.class_names.index(name) if name in self.class_names else -1


@dataclass(frozen=True, kw_only=True)
class TrainingClips(VideoDataset):
    """Item `(epoch, index)` is one clip at a random place, changed by `augment`, the same on every call."""

    augment: Augment

    def __getitem__(self, key: tuple[int, int]) -> Sample | Failure:
        epoch, index = key
        rng = np.random.default_rng((self.seed, epoch, index))
        try:
            first, num_frames = self.extent(index)
            fps = self.infos[index].fps
            start = sampling.random_start(num_frames, sampling.span(self.clip, fps), rng)
            frames = self.read(index, [first + i for i in sampling.clip_indices(num_frames, start, self.clip, fps)])
        except VideoError as error:
            return self.failure(index, error)
        frames, label = self.augment(frames, self.items[index].label, size=self.clip.size, rng=rng)
        return Sample(clips=frames[None], label=self.label(label), video=index)


@dataclass(frozen=True, kw_only=True)
class Views(VideoDataset):
    """Item `(epoch, index)` is every view of one video, clip by clip and crop by crop, decoded once; no chance in it.

    Attributes:
        num_clips: clips spread evenly over the video.
        num_crops: crops of each, along the frame's longer side.
        order: frames of a clip in another order of time (`sampling.ORDERS`), to test what a model makes of it.
    """

    num_clips: int = 1
    num_crops: int = 1
    order: str = "forward"

    def __getitem__(self, key: tuple[int, int]) -> Sample | Failure:
        _, index = key
        try:
            first, num_frames = self.extent(index)
            fps = self.infos[index].fps
            starts = sampling.spread_starts(num_frames, sampling.span(self.clip, fps), self.num_clips)
            rng = np.random.default_rng((self.seed, index))
            clips = [
                sampling.reorder(sampling.clip_indices(num_frames, start, self.clip, fps), self.order, rng)
                for start in starts
            ]
            needed = sorted({i for clip in clips for i in clip})
            frames = self.read(index, [first + i for i in needed])
        except VideoError as error:
            return self.failure(index, error)
        crops = [self._crop(frames, crop) for crop in range(self.num_crops)]
        places = [torch.tensor([needed.index(i) for i in clip]) for clip in clips]
        views = torch.stack([crop[place] for place in places for crop in crops])
        return Sample(clips=views, label=self.label(self.items[index].label), video=index)

    def _crop(self, frames: Tensor, crop: int) -> Tensor:
        box = crop_box(*frames.shape[-2:], self.clip.size, crop=crop, num_crops=self.num_crops)
        return crop_and_resize(frames, box, self.clip.size)


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
        clips=torch.cat(views) if views else torch.empty(0, 0, 3, 0, 0, dtype=torch.uint8),
        lengths=lengths,
        labels=torch.tensor([sample["label"] for sample in good], dtype=torch.int64).repeat_interleave(counts),
        videos=torch.tensor([sample["video"] for sample in good], dtype=torch.int64).repeat_interleave(counts),
        failed=failed,
    )


class EpochSampler(Sampler):
    """Keys `(epoch, index)`, so that an item knows its epoch in whatever process it is made.

    Under several processes each takes every `world_size`-th item. In training (`shuffle`) all get equally many and
    the rest, fewer than `world_size`, waits for another epoch's order; in evaluation each item is taken once.
    """

    def __init__(self, *, num_items: int, shuffle: bool, seed: int = 0, rank: int = 0, world_size: int = 1):
        self.num_items, self.shuffle, self.seed = num_items, shuffle, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        if self.shuffle:
            return self.num_items // self.world_size
        return len(range(self.rank, self.num_items, self.world_size))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.arange(self.num_items)
        if self.shuffle:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(self.num_items)
        for index in order[self.rank :: self.world_size][: len(self)]:
            yield self.epoch, int(index)
