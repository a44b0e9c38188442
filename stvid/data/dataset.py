"""Datasets: one random clip of a video for training, all views of a video for evaluation; and their batches.

V views of one video   B clips in a batch   T frames   C channels   H, W height and width
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NotRequired, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from stvid.clip import ClipSpec
from stvid.data import sampling
from stvid.data.manifest import Item
from stvid.data.sampler import SampleKey, resolve_key
from stvid.errors import EMPTY, VideoError
from stvid.preprocess import as_input, crop_and_resize, crop_box, reading_size
from stvid.video.reader import read_frames
from stvid.video.types import VideoInfo

if TYPE_CHECKING:  # it imports torchvision, which evaluation does not need
    from stvid.data.transforms import Augment


class Failure(NamedTuple):
    """A video that could not be read: its index in the split, and why (see `VideoError`)."""

    video: int
    path: str
    reason: str
    detail: str = ""


class AugmentArguments(NamedTuple):
    """What a clip still needs for its augmentation: the arguments of `Augment`, and its number of pictures."""

    label: str
    rng: np.random.Generator  # after the position and the crop were drawn
    num_pictures: int  # T, or 2T with difference images, see `as_input`


class Sample(TypedDict):
    clips: Tensor  # uint8 V x T x C x H x W, V = 1 in training; T may be shorter than the clip's with short=pad
    label: int  # -1 if unknown
    video: int  # index of the item in its split
    path: str
    augment: NotRequired[AugmentArguments]  # `clips` are pictures that are not augmented yet


class Batch(TypedDict):
    clips: Tensor  # uint8 B x T x C x H x W
    lengths: Tensor | None  # int64 B, frames of each clip without padding; None: all T of every clip
    labels: Tensor  # int64 B
    videos: Tensor  # int64 B
    paths: list[str]  # of the clips' files, B
    failed: list[Failure]
    augment: NotRequired[list[AugmentArguments]]  # B; `clips` are pictures, see `TrainingClips.augment_batch`


def item_frames(item: Item, info: VideoInfo | VideoError) -> range:
    """The frame numbers of an item within its file.

    Raises:
        VideoError: `info` if it is one; empty, if there is no frame between the item's start and end.
    """
    if isinstance(info, VideoError):
        raise info
    frames = sampling.frames_between(info, item.start, item.end)
    if not frames:
        raise VideoError(item.path, EMPTY, f"no frames between {item.start or 0} s and {item.end or 'the end'} s")
    return frames


@dataclass(frozen=True, kw_only=True)
class VideoDataset(Dataset):
    """Base of `TrainingClips` and `Views`: items, the properties of their files, and reading frames.

    `dataset[key]` takes a `SampleKey`, as `EpochSampler` yields, or an index, which means epoch 0. Negative indices
    count from the end; an index out of range raises IndexError.

    Attributes:
        items: the items of one split, in a fixed order.
        infos: for each item the result of `probe`, or its error.
        class_names: in the order of the model's outputs.
        clip: the clip's geometry.
        seed: random choices depend only on seed, epoch and item.
        backend, max_pixels: see `read_frames`.
    """

    items: Sequence[Item]
    infos: Sequence[VideoInfo | VideoError]
    class_names: Sequence[str]
    clip: ClipSpec
    seed: int = 0
    backend: str = "pyav"
    max_pixels: int | None = None

    def __len__(self) -> int:
        return len(self.items)

    def info(self, index: int) -> VideoInfo:
        """What is known about an item's file; raises VideoError if it cannot be read."""
        info = self.infos[index]
        if isinstance(info, VideoError):
            raise info
        return info

    def timeline(self, index: int, *, speed: float = 1.0) -> tuple[Sequence[int], float]:
        """An item's frame numbers within its file, and their rate in frames per second; see `sampling.timeline`.

        Raises:
            VideoError: the file cannot be read, or has no frame between the item's start and end.
        """
        info = self.info(index)
        return sampling.timeline(item_frames(self.items[index], info), self.clip, info, speed=speed)

    def read(self, index: int, frames: Sequence[int], boxes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """The given frames of the file, cropped to each box and resized: uint8 T x C x `clip.size` per box."""
        info, size = self.info(index), self.clip.size
        native = (info.height, info.width)
        short_side = reading_size(*native, boxes[0], size)
        frames_TCHW = read_frames(
            self.items[index].path,
            frames,
            info=info,
            short_side=short_side,
            backend=self.backend,
            max_pixels=self.max_pixels,
        )
        return [crop_and_resize(frames_TCHW, box, size, native=native) for box in boxes]

    def item_seed(self, index: int) -> int:
        """A hash of the item's name and times, independent of its split and index.

        So a video's random clips, and their cached features, are the same in every fold, after other videos were added,
        and after the data set was moved.
        """
        item = self.items[index]
        path = Path(item.path)
        return zlib.crc32(repr((path.parent.name, path.stem, item.start, item.end)).encode("utf-8", "surrogateescape"))

    def make_failure(self, index: int, error: VideoError) -> Failure:
        return Failure(video=index, path=self.items[index].path, reason=error.reason, detail=error.detail)

    def class_index(self, name: str) -> int:
        """Index of a class; -1 if it is unknown."""
        return self.class_names.index(name) if name in self.class_names else -1


@dataclass(frozen=True, kw_only=True)
class TrainingClips(VideoDataset):
    """`dataset[SampleKey]` is one clip at a random position, augmented; the same on every call.

    Attributes:
        augment: random changes to clips.
        augments_later: samples are cropped and resized, but not augmented yet, and carry their random generators:
            `augment_batch` goes on, on the device of the batch. Frames of different videos differ in size, so cropping
            and resizing cannot wait for the batch.
    """

    augment: Augment
    augments_later: bool = False

    def __getitem__(self, key: SampleKey | tuple[int, ...] | int) -> Sample | Failure:
        key = resolve_key(key, len(self))
        index = key.index
        rng = np.random.default_rng((self.seed, key.epoch, self.item_seed(index), key.repeat))
        try:
            info = self.info(index)
            speed = self.augment.random_speed(rng)
            if speed > 1:
                frames, fps = self.timeline(index)
                speed = min(speed, sampling.fastest(self.clip, len(frames), fps))
            frames, fps = self.timeline(index, speed=speed)
            clip = sampling.resolve_num_frames(self.clip, len(frames), fps)
            start = sampling.random_start(len(frames), sampling.clip_span(clip, fps), rng)
            box = self.augment.random_box(info.height, info.width, self.clip.size, rng)
            selected = [frames[i] for i in sampling.clip_indices(len(frames), start, clip, fps)]
            selected = sampling.earlier_frames(selected, frames, clip, info, speed=speed) + selected
            (frames_TCHW,) = self.read(index, selected, [box])
        except VideoError as error:
            return self.make_failure(index, error)
        item = self.items[index]
        if self.augments_later:
            arguments = AugmentArguments(item.label, rng, len(frames_TCHW))
            label = self.class_index(item.label)
            return Sample(clips=frames_TCHW[None], label=label, video=index, path=item.path, augment=arguments)
        frames_TCHW, name = self.augment(frames_TCHW, item.label, rng=rng)
        clips_1TCHW = as_input(frames_TCHW, clip)[None]
        return Sample(clips=clips_1TCHW, label=self.class_index(name), video=index, path=item.path)

    def augment_batch(self, batch: Batch) -> Batch:
        """Augments the clips of a batch on their device, if that is still to be done.

        Args:
            batch: collated samples, moved to any device. Its generators are used up.

        Returns:
            The batch that `augments_later=False` gives, on the CPU bit for bit. A GPU may round a grey level to its
            neighbour, which a later RandAugment operation may amplify.
        """
        if "augment" not in batch:
            return batch
        pictures, device, per_frame = batch["clips"], batch["clips"].device, self.clip.pictures_per_frame
        num_frames = pictures.shape[1] // per_frame
        shape_BTHWC = (len(pictures), num_frames, *pictures.shape[3:], self.clip.channels)
        clips_BTCHW = pictures.new_zeros(shape_BTHWC).permute(0, 1, 4, 2, 3)  # channels last, as `collate` makes them
        labels = []
        for clip_TCHW, pictures_TCHW, (label, rng, count) in zip(clips_BTCHW, pictures, batch["augment"], strict=True):
            augmented_TCHW, name = self.augment(pictures_TCHW[:count], label, rng=rng)
            clip_TCHW[: count // per_frame] = as_input(augmented_TCHW, self.clip)
            labels.append(self.class_index(name))
        lengths = None if batch["lengths"] is None else batch["lengths"] // per_frame
        # pinned memory, from which a GPU copies while this process goes on
        labels_B = torch.tensor(labels, dtype=torch.int64, pin_memory=device.type == "cuda")
        labels_B = labels_B.to(device, non_blocking=device.type == "cuda")
        done: Batch = {**batch, "clips": clips_BTCHW, "lengths": lengths, "labels": labels_B}
        del done["augment"]
        return done


@dataclass(frozen=True, kw_only=True)
class Views(VideoDataset):
    """`dataset[SampleKey]` is all views of one video, clip by clip and crop by crop; deterministic.

    Attributes:
        num_clips: clips per video, uniformly spaced.
        num_crops: crops per clip, see `crop_box`.
        playback: one of `sampling.PLAYBACKS`, to test how a model uses time.
        frames: uint8 `T x 3 x H x W`, used instead of the file of the only item; None: read the files.
    """

    num_clips: int = 1
    num_crops: int = 1
    playback: str = "normal"
    frames: Tensor | None = None

    def __post_init__(self) -> None:
        sampling.check_playback(self.playback)

    def read(self, index: int, frames: Sequence[int], boxes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """See `VideoDataset.read`."""
        if self.frames is None:
            return super().read(index, frames, boxes)
        return [crop_and_resize(self.frames[list(frames)], box, self.clip.size) for box in boxes]

    def timeline(self, index: int, *, speed: float = 1.0) -> tuple[Sequence[int], float]:
        """See `VideoDataset.timeline`; at the speed of `playback`."""
        return super().timeline(index, speed=speed * sampling.playback_speed(self.playback))

    def __getitem__(self, key: SampleKey | tuple[int, ...] | int) -> Sample | Failure:
        index = resolve_key(key, len(self)).index
        try:
            pictures = self.pictures(index)
        except VideoError as error:
            return self.make_failure(index, error)
        views_VTCHW = torch.stack([as_input(pictures_TCHW, self.clip) for pictures_TCHW in pictures])
        item = self.items[index]
        return Sample(clips=views_VTCHW, label=self.class_index(item.label), video=index, path=item.path)

    def pictures(self, index: int) -> Iterator[Tensor]:
        """The views of an item as pictures, before difference images are made of them; see `as_input`.

        Returns:
            Of each view, uint8 `T x 3 x H x W`, or `2T x 3 x H x W` with the earlier pictures first.

        Raises:
            VideoError: the file cannot be read.
        """
        frames, fps = self.timeline(index)
        rng = np.random.default_rng((self.seed, self.item_seed(index)))
        info = self.info(index)
        clips = sampling.view_frames(frames, fps, self.clip, info, self.num_clips, playback=self.playback, rng=rng)
        needed = sorted({frame for selected in clips for frame in selected})
        crops = self.read(index, needed, self._boxes(info))  # every frame is decoded once
        place = {frame: i for i, frame in enumerate(needed)}
        positions = [torch.tensor([place[frame] for frame in selected]) for selected in clips]
        return (crop[position] for position in positions for crop in crops)

    def _boxes(self, info: VideoInfo) -> list[tuple[int, ...]]:
        return [
            crop_box(info.height, info.width, self.clip.size, crop=crop, num_crops=self.num_crops)
            for crop in range(self.num_crops)
        ]


def collate(samples: Sequence[Sample | Failure]) -> Batch:
    """Collates samples to a batch; videos that failed are only listed in `failed`."""
    failed = [sample for sample in samples if isinstance(sample, Failure)]
    good = [sample for sample in samples if not isinstance(sample, Failure)]
    views = [sample["clips"] for sample in good]
    longest = max((len(clips[0]) for clips in views), default=0)
    lengths = None
    if any(clips.shape[1] < longest for clips in views):
        lengths = torch.tensor([clips.shape[1] for clips in views for _ in clips])
        no_pad = (0, 0) * 3  # of C, H and W
        views = [torch.nn.functional.pad(clips, (*no_pad, 0, longest - clips.shape[1])) for clips in views]
    counts = torch.tensor([len(clips) for clips in views], dtype=torch.int64)
    batch = Batch(
        clips=_concat_channels_last(views) if views else torch.empty(0, 0, 3, 0, 0, dtype=torch.uint8),
        lengths=lengths,
        labels=torch.tensor([sample["label"] for sample in good], dtype=torch.int64).repeat_interleave(counts),
        videos=torch.tensor([sample["video"] for sample in good], dtype=torch.int64).repeat_interleave(counts),
        paths=[sample["path"] for sample in good for _ in sample["clips"]],
        failed=failed,
    )
    if good and "augment" in good[0]:
        batch["augment"] = [sample["augment"] for sample in good]
    return batch


def _concat_channels_last(views: Sequence[Tensor]) -> Tensor:
    """Concatenates V x T x C x H x W tensors to B x T x C x H x W in channels-last memory order.

    Decoders return this order, and convolutions are fastest with it, so nothing is transposed on the way. A worker
    process writes to shared memory.
    """
    views = [clips.permute(0, 1, 3, 4, 2) for clips in views]
    shape = (sum(map(len, views)), *views[0].shape[1:])
    clips_BTHWC = torch.empty(0, dtype=torch.uint8)
    if get_worker_info() is None:
        clips_BTHWC = clips_BTHWC.new_empty(shape)
    else:
        storage = torch.UntypedStorage._new_shared(math.prod(shape))
        clips_BTHWC.set_(storage, 0, shape)  # type: ignore[call-overload] # torch's stubs know typed storages only
    return torch.cat(views, out=clips_BTHWC).permute(0, 1, 4, 2, 3)
