"""A `VideoDataset` whose samples are cached features of a frozen encoder instead of clips.

V views of one video   T frames   F features of a frame
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
from collections.abc import Iterator, Sequence
from typing import TypedDict

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

import stvid
from stvid.data.dataset import Batch, Failure, Sample, TrainingClips, VideoDataset, Views, collate
from stvid.data.feature_cache import FeatureCache, hash_text
from stvid.data.feature_entries import CachedFeatures, EntryHead
from stvid.data.loading import worker_options
from stvid.data.sampler import SampleKey, resolve_key
from stvid.errors import InputError, VideoError
from stvid.video.shard_index import find_member
from stvid.video.types import AV_VERSION, file_identity

FRAME_SELECTION_VERSION = 2  # raise it when the same settings select other frames; 2: clip.short=wrap


class FeatureSample(TypedDict):
    features: Tensor  # float32 V x T x F
    label: int  # -1 if unknown
    video: int  # index of the item in its split
    path: str


class FeatureBatch(TypedDict):
    features: Tensor  # float32 B x T x F
    lengths: Tensor | None  # int64 B, frames of each clip without padding; None: all T of every clip
    labels: Tensor  # int64 B
    videos: Tensor  # int64 B
    paths: list[str]  # of the clips' files, B
    failed: list[Failure]


def sample_settings(dataset: VideoDataset) -> dict:
    """All settings that affect the pixels of a dataset's samples, as plain data."""
    common = {
        "kind": type(dataset).__name__,
        "frames": FRAME_SELECTION_VERSION,
        "clip": dataset.clip.to_dict(),
        "backend": dataset.backend,
        "av": AV_VERSION,
        "torchvision": importlib.metadata.version("torchvision"),
        "stvid": stvid.__version__,
    }
    if isinstance(dataset, TrainingClips):
        augment = dataclasses.asdict(dataset.augment)
        del augment["device"]  # clips to encode are augmented on the CPU
        if dataset.augment.speed == (1.0, 1.0):
            del augment["speed"]  # features that were stored before there was a speed stay valid
        return {**common, "seed": dataset.seed, "augment": augment}
    assert isinstance(dataset, Views)
    return {**common, "num_clips": dataset.num_clips, "num_crops": dataset.num_crops, "playback": dataset.playback}


class CachedClips(Dataset):
    """The samples of a `VideoDataset` as cached features, with the same keys.

    To fill the cache: encode `batches(missing_keys(keys), ...)`, and write `entries(...)` of each batch.

    Args:
        clips: the dataset.
        cache: the cache, which must contain a sample before it is used.

    Attributes:
        feature_size: F of the encoder; cached samples with another F count as missing. None: any F.
    """

    def __init__(self, clips: VideoDataset, cache: FeatureCache):
        self.clips, self.cache = clips, cache
        self.files = [self._identity(index) for index in range(len(clips))]
        self.failed: dict[SampleKey, Failure] = {}
        self.feature_size: int | None = None
        self.num_views = clips.num_clips * clips.num_crops if isinstance(clips, Views) else 1

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, key: SampleKey | tuple[int, ...] | int) -> FeatureSample | Failure:
        key = resolve_key(key, len(self))
        if isinstance(info := self.clips.infos[key.index], VideoError):
            return self.clips.make_failure(key.index, info)
        if key in self.failed:
            return self.failed[key]
        sample = self._find(key)
        if sample is None:
            self.cache.close()  # another process may have replaced a damaged file
            sample = self._find(key)
        if sample is None:
            raise InputError(
                f"{self.cache.path} has changed meanwhile, or its disk is damaged: the features of "
                f"{self.clips.items[key.index].path} cannot be read. The same command encodes them again"
            )
        features = torch.from_numpy(sample.features_VTF)
        path, label = self.clips.items[key.index].path, self.clips.class_index(sample.label)
        return FeatureSample(features=features, label=label, video=key.index, path=path)

    def cache_key(self, key: SampleKey) -> str:
        """Hash of the sample's file in its current state, its times and label, and epoch and repeat if it is random."""
        random_key = [key.epoch, key.repeat] if isinstance(self.clips, TrainingClips) else []
        item, info = self.clips.items[key.index], self.clips.info(key.index)
        file = [item.path, self.files[key.index], info.num_frames]  # a broken file's depends on how it was probed
        return hash_text(json.dumps([*file, item.start, item.end, item.label, random_key]))

    def missing_keys(self, keys: Sequence[SampleKey], *, verify: bool = True) -> list[SampleKey]:
        """The keys without a cached sample, except those of videos that are known to be unreadable.

        Args:
            keys: of the samples.
            verify: read the features too, and compare them with their checksums.
        """
        infos = self.clips.infos
        readable = (key for key in keys if key not in self.failed and not isinstance(infos[key.index], VideoError))
        is_cached = self._find if verify else self._find_head
        return [key for key in readable if is_cached(key) is None]

    def _find(self, key: SampleKey) -> CachedFeatures | None:
        """The cached sample; None if there is none, or not one of this item."""
        sample = self.cache.find(self.cache_key(key))
        is_own = sample is not None and self._is_own(key, EntryHead(sample.features_VTF.shape, sample.label))
        return sample if is_own else None

    def _find_head(self, key: SampleKey) -> EntryHead | None:
        head = self.cache.find_head(self.cache_key(key))
        return head if head is not None and self._is_own(key, head) else None

    def _is_own(self, key: SampleKey, head: EntryHead) -> bool:
        """Whether a sample can be one of this item and this encoder."""
        num_views, _, size = head.shape
        return (
            num_views == self.num_views and self.feature_size in (None, size) and head.label in self._labels(key.index)
        )

    def _labels(self, index: int) -> tuple[str, ...]:
        """The labels that an item's samples can have: a flip may change it."""
        label = self.clips.items[index].label
        known = label if self.clips.class_index(label) >= 0 else ""
        if not isinstance(self.clips, TrainingClips):
            return (known,)
        return known, self.clips.augment.flipped_label(label)

    def batches(
        self, keys: Sequence[SampleKey], *, batch_size: int, num_workers: int
    ) -> Iterator[tuple[list[SampleKey], Batch]]:
        """Yields batches of about `batch_size` clips, each with the keys of the samples that could be read, in order.

        Failures are recorded in `failed` for this run; the next run tries these videos again.
        """
        size = max(batch_size // self.num_views, 1)
        loader = DataLoader(
            self.clips, batch_size=size, sampler=keys, collate_fn=_collate_with_failures, **worker_options(num_workers)
        )
        for number, (batch, failures) in enumerate(loader):
            batch_keys = keys[number * size : (number + 1) * size]
            self.failed |= {key: f for key, f in zip(batch_keys, failures, strict=True) if f is not None}
            yield [key for key in batch_keys if key not in self.failed], batch

    def entries(
        self, keys: Sequence[SampleKey], batch: Batch, features_BTF: Tensor
    ) -> Iterator[tuple[str, CachedFeatures]]:
        """Yields the cache key and content of each sample of an encoded batch.

        Args:
            keys: as yielded by `batches`.
            batch: as yielded by `batches`.
            features_BTF: features of the batch's clips.
        """
        assert len(features_BTF) == len(keys) * self.num_views
        for number, key in enumerate(keys):
            first = number * self.num_views
            length = features_BTF.shape[1] if batch["lengths"] is None else int(batch["lengths"][first])
            label = int(batch["labels"][first])
            name = self.clips.class_names[label] if label >= 0 else ""
            features_VTF = features_BTF[first : first + self.num_views, :length].numpy()
            yield self.cache_key(key), CachedFeatures(features_VTF=features_VTF, label=name)

    def _identity(self, index: int) -> list | None:
        path = self.clips.items[index].path
        if (member := find_member(path)) is not None:
            return [member.num_bytes, member.crc32]
        return file_identity(path) if os.path.exists(path) else None


def _collate_with_failures(samples: Sequence[Sample | Failure]) -> tuple[Batch, list[Failure | None]]:
    """The batch, and for each sample its failure or None."""
    return collate(samples), [sample if isinstance(sample, Failure) else None for sample in samples]


def collate_features(samples: Sequence[FeatureSample | Failure]) -> FeatureBatch:
    """Collates samples to a batch, like `collate` for clips."""
    failed = [sample for sample in samples if isinstance(sample, Failure)]
    good = [sample for sample in samples if not isinstance(sample, Failure)]
    views = [view for sample in good for view in sample["features"]]
    counts = torch.tensor([len(sample["features"]) for sample in good], dtype=torch.int64)
    lengths = torch.tensor([len(view) for view in views])
    return FeatureBatch(
        features=pad_sequence(views, batch_first=True) if views else torch.empty(0, 0, 0),
        lengths=lengths if len(set(lengths.tolist())) > 1 else None,
        labels=torch.tensor([sample["label"] for sample in good], dtype=torch.int64).repeat_interleave(counts),
        videos=torch.tensor([sample["video"] for sample in good], dtype=torch.int64).repeat_interleave(counts),
        paths=[sample["path"] for sample in good for _ in sample["features"]],
        failed=failed,
    )
