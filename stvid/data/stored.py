"""Items whose features have been stored: the same samples as a `VideoDataset`'s, without a decoder or an encoder.

V views of one video   B clips in a batch   T frames   F features of a frame
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from typing import TypedDict

import torch
import torchvision
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

import stvid
from stvid.data.dataset import Batch, Failure, Sample, TrainingClips, VideoDataset, Views, collate
from stvid.data.drawing import SampleKey, as_draw
from stvid.data.loading import worker_options
from stvid.feature_store import FeatureStore, Stored, digest
from stvid.video.cache import AV_VERSION as av_version
from stvid.video.cache import identity
from stvid.video.errors import VideoError

FRAMES = 2  # another number where the same settings take other frames than before; 2: clip.short=wrap


class StoredSample(TypedDict):
    features: Tensor  # float32 V x T x F
    label: int  # -1 where unknown
    video: int  # position of the item in its split
    path: str


class StoredBatch(TypedDict):
    features: Tensor  # float32 B x T x F
    lengths: Tensor | None  # int64 B, real frames of each clip; None: all T of every clip
    labels: Tensor  # int64 B
    videos: Tensor  # int64 B
    paths: list[str]  # of the clips' files, B
    failed: list[Failure]


def sample_facts(dataset: VideoDataset) -> dict:
    """What the pixels of a data set's items depend on beside the files, as plain data."""
    common = {
        "kind": type(dataset).__name__,
        "frames": FRAMES,
        "clip": dataset.clip.to_dict(),
        "backend": dataset.backend,
        "av": av_version,
        "torchvision": torchvision.__version__,
        "stvid": stvid.__version__,
    }
    if isinstance(dataset, TrainingClips):
        return {**common, "seed": dataset.seed, "augment": dataclasses.asdict(dataset.augment)}
    assert isinstance(dataset, Views)
    return {**common, "num_clips": dataset.num_clips, "num_crops": dataset.num_crops, "playback": dataset.playback}


class StoredClips(Dataset):
    """A `VideoDataset` seen through a feature store that holds all of its draws. It is indexed likewise.

    Args:
        clips: the data set itself.
        store: filled by `missing` and `encoded`.
    """

    def __init__(self, clips: VideoDataset, store: FeatureStore):
        self.clips, self.store = clips, store
        self.files = [self._file(index) for index in range(len(clips))]
        self.failed: dict[SampleKey, Failure] = {}
        self.num_views = 1 if isinstance(clips, TrainingClips) else clips.num_clips * clips.num_crops

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, key: SampleKey | tuple[int, ...] | int) -> StoredSample | Failure:
        draw = as_draw(key, len(self))
        if isinstance(info := self.clips.infos[draw.index], VideoError):
            return self.clips.failure(draw.index, info)
        if draw in self.failed:
            return self.failed[draw]
        stored = self.store[self.key(draw)]
        features = torch.from_numpy(stored.features_VTF)
        path, label = self.clips.items[draw.index].path, self.clips.label(stored.label)
        return StoredSample(features=features, label=label, video=draw.index, path=path)

    def key(self, draw: SampleKey) -> str:
        """Of an item's features: its file as it is now, the part of it, and the draw where chance depends on it."""
        chance = [draw.epoch, draw.repeat] if isinstance(self.clips, TrainingClips) else []
        item, info = self.clips.items[draw.index], self.clips.infos[draw.index]
        file = [item.path, self.files[draw.index], info.num_frames]  # a broken file's depends on how it was probed
        return digest(json.dumps([*file, item.start, item.end, item.label, chance]))

    def missing(self, draws: Sequence[SampleKey]) -> list[SampleKey]:
        """Those of the draws that the store does not have, of videos that could be read as far as is known."""
        wanted = (d for d in draws if d not in self.failed and not isinstance(self.clips.infos[d.index], VideoError))
        return [draw for draw in wanted if self.key(draw) not in self.store]

    def batches(
        self, draws: Sequence[SampleKey], *, batch_size: int, num_workers: int
    ) -> Iterator[tuple[list[SampleKey], Batch]]:
        """The clips of the draws, about `batch_size` clips together, with the draws that could be read, in their order.

        The others are taken note of for this run; the next one tries them again.
        """
        size = max(batch_size // self.num_views, 1)
        loader = DataLoader(
            self.clips, batch_size=size, sampler=draws, collate_fn=_collate_in_order, **worker_options(num_workers)
        )
        for number, (batch, failures) in enumerate(loader):
            part = draws[number * size : (number + 1) * size]
            self.failed |= {draw: f for draw, f in zip(part, failures, strict=True) if f is not None}
            yield [draw for draw in part if draw not in self.failed], batch

    def encoded(self, draws: Sequence[SampleKey], batch: Batch, features_BTF: Tensor) -> Iterator[tuple[str, Stored]]:
        """What is to be stored of a batch: key and content for each draw.

        Args:
            draws, batch: as `batches` gave them.
            features_BTF: of the batch's clips.
        """
        assert len(features_BTF) == len(draws) * self.num_views
        for number, draw in enumerate(draws):
            first = number * self.num_views
            length = features_BTF.shape[1] if batch["lengths"] is None else int(batch["lengths"][first])
            label = int(batch["labels"][first])
            name = self.clips.class_names[label] if label >= 0 else ""
            features_VTF = features_BTF[first : first + self.num_views, :length].numpy()
            yield self.key(draw), Stored(features_VTF=features_VTF, label=name)

    def _file(self, index: int) -> list | None:
        path = self.clips.items[index].path
        return identity(path) if os.path.exists(path) else None


def _collate_in_order(samples: Sequence[Sample | Failure]) -> tuple[Batch, list[Failure | None]]:
    """The batch, and for each sample whether it failed."""
    return collate(samples), [sample if isinstance(sample, Failure) else None for sample in samples]


def collate_stored(samples: Sequence[StoredSample | Failure]) -> StoredBatch:
    """Samples to a batch, as `collate` does with clips."""
    failed = [sample for sample in samples if isinstance(sample, Failure)]
    good = [sample for sample in samples if not isinstance(sample, Failure)]
    views = [view for sample in good for view in sample["features"]]
    counts = torch.tensor([len(sample["features"]) for sample in good], dtype=torch.int64)
    lengths = torch.tensor([len(view) for view in views])
    return StoredBatch(
        features=pad_sequence(views, batch_first=True) if views else torch.empty(0, 0, 0),
        lengths=lengths if len(set(lengths.tolist())) > 1 else None,
        labels=torch.tensor([sample["label"] for sample in good], dtype=torch.int64).repeat_interleave(counts),
        videos=torch.tensor([sample["video"] for sample in good], dtype=torch.int64).repeat_interleave(counts),
        paths=[sample["path"] for sample in good for _ in sample["features"]],
        failed=failed,
    )
