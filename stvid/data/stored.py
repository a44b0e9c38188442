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
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from stvid.data.dataset import Batch, Failure, TrainingClips, VideoDataset, Views, collate
from stvid.data.drawing import Draw
from stvid.data.loading import worker_options
from stvid.feature_store import FeatureStore, Stored, digest
from stvid.video.cache import identity
from stvid.video.errors import VideoError


class StoredSample(TypedDict):
    features: Tensor  # float32 V x T x F
    label: int  # -1 where unknown
    video: int  # position of the item in its split


class StoredBatch(TypedDict):
    features: Tensor  # float32 B x T x F
    lengths: Tensor | None  # int64 B, real frames of each clip; None: all T of every clip
    labels: Tensor  # int64 B
    videos: Tensor  # int64 B
    failed: list[Failure]


def facts(dataset: VideoDataset) -> dict:
    """What the pixels of a data set's items depend on beside the files, as plain data."""
    common = {"kind": type(dataset).__name__, "clip": dataset.clip.to_dict()}
    if isinstance(dataset, TrainingClips):
        return {**common, "seed": dataset.seed, "augment": dataclasses.asdict(dataset.augment)}
    assert isinstance(dataset, Views)
    return {**common, "num_clips": dataset.num_clips, "num_crops": dataset.num_crops, "order": dataset.order}


class StoredClips(Dataset):
    """A `VideoDataset` seen through a feature store that holds all of its draws.

    Args:
        clips: the data set itself.
        store: filled by `missing` and `encoded`.
    """

    def __init__(self, clips: VideoDataset, store: FeatureStore):
        self.clips, self.store = clips, store
        self.files = [self._file(index) for index in range(len(clips))]

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, key: Draw | tuple[int, int]) -> StoredSample | Failure:
        draw = Draw(*key)
        if isinstance(info := self.clips.infos[draw.index], VideoError):
            return self.clips.failure(draw.index, info)
        stored = self.store[self.key(draw)]
        if stored.failed:
            return Failure(video=draw.index, path=self.clips.items[draw.index].path, reason=stored.failed)
        features = torch.from_numpy(stored.features_VTF)
        return StoredSample(features=features, label=self.clips.label(stored.label), video=draw.index)

    def key(self, draw: Draw) -> str:
        """Of an item's features: its file as it is now, the part of it, and the draw where chance depends on it."""
        chance = list(draw) if isinstance(self.clips, TrainingClips) else []
        item = self.clips.items[draw.index]
        return digest(json.dumps([item.path, self.files[draw.index], item.start, item.end, item.label, chance]))

    def missing(self, draws: Sequence[Draw]) -> list[Draw]:
        """Those of the draws that the store does not have yet, of files that can be read as far as is known."""
        readable = (draw for draw in draws if not isinstance(self.clips.infos[draw.index], VideoError))
        return [draw for draw in readable if self.key(draw) not in self.store]

    def batches(
        self, draws: Sequence[Draw], *, batch_size: int, num_workers: int
    ) -> Iterator[tuple[list[Draw], Batch]]:
        """The clips of the draws, `batch_size` draws together, with the draws themselves."""
        loader = DataLoader(
            self.clips, batch_size=batch_size, sampler=draws, collate_fn=collate, **worker_options(num_workers)
        )
        for number, batch in enumerate(loader):
            yield list(draws[number * batch_size : (number + 1) * batch_size]), batch

    def encoded(self, draws: Sequence[Draw], batch: Batch, features_BTF: Tensor) -> Iterator[tuple[str, Stored]]:
        """What is to be stored of a batch: key and content for each draw.

        Args:
            draws: that the batch was made of.
            batch: as `batches` gave it.
            features_BTF: of its clips.
        """
        reasons = {failure.video: failure.reason for failure in batch["failed"]}
        first = 0
        for draw in draws:
            if draw.index in reasons:
                yield self.key(draw), Stored(features_VTF=features_BTF[:0].numpy(), failed=reasons[draw.index])
                continue
            num_views = 1 if isinstance(self.clips, TrainingClips) else self.clips.num_clips * self.clips.num_crops
            views = slice(first, first := first + num_views)
            length = features_BTF.shape[1] if batch["lengths"] is None else int(batch["lengths"][views.start])
            label = int(batch["labels"][views.start])
            name = self.clips.class_names[label] if label >= 0 else ""
            yield self.key(draw), Stored(features_VTF=features_BTF[views, :length].numpy(), label=name)

    def _file(self, index: int) -> list | None:
        path = self.clips.items[index].path
        return identity(path) if os.path.exists(path) else None


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
        failed=failed,
    )
