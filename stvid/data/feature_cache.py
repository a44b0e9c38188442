"""Features of a frozen encoder, kept in an HDF5 file, and the data sets that serve them instead of clips.

V views of one video   T frames   F features of a frame
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import h5py
import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

import stvid
from stvid.data.dataset import Batch, Failure, Sample, TrainingClips, VideoDataset, Views, collate
from stvid.data.loading import worker_options
from stvid.data.sampler import SampleKey, as_draw
from stvid.errors import VideoError
from stvid.files import replacing
from stvid.video.types import AV_VERSION as av_version
from stvid.video.types import file_identity

log = logging.getLogger(__name__)
FORMAT = 2  # of the files; another one begins anew
_PART = ".part.h5"  # the end of a part's name
_SAVE_EVERY = 30.0  # seconds
_PART_BYTES = 2**28  # held in memory until they are written
_MOST_PARTS = 100  # all of them are open at once
_STALE = 3600.0  # seconds after which a file that is being written is nobody's
FRAMES = 2  # another number where the same settings take other frames than before; 2: clip.short=wrap


@dataclass(frozen=True, kw_only=True)
class Stored:
    """What is kept of one item.

    Attributes:
        features_VTF: float32.
        label: its class, which a mirror image may have changed.
    """

    features_VTF: np.ndarray
    label: str


class FeatureStore:
    """An HDF5 file, and beside it the parts that have been added and not yet merged into it; all of them are read.

    The name is a hash of all that the features depend on beside the videos. So another encoder, other weights or
    another preprocessing is another file, and never gives features that are out of date; the keys of the items do the
    same for the videos.

    A file is complete when it gets its name, and never changes: others can read it at any time, and a killed process
    loses what it added in the last half minute.

    Args:
        folder: where the files lie, or will; nothing else is kept in it.
        facts: what the features depend on, as plain data; it is kept in the files, for people.
    """

    def __init__(self, folder: Path, facts: Mapping):
        text = json.dumps({"format": FORMAT, **facts}, sort_keys=True)
        self.path = Path(folder) / f"{digest(text)}.h5"
        self.facts = text
        self._files: list[h5py.File] | None = None

    def __contains__(self, key: str) -> bool:
        return any(key in file for file in self._open())

    def __len__(self) -> int:
        return len({key for file in self._open() for key in file})

    def __getitem__(self, key: str) -> Stored:
        for file in self._open():
            if key in file:
                return Stored(features_VTF=file[key][()], label=json.loads(file[key].attrs["label"]))
        raise KeyError(key)

    @contextlib.contextmanager
    def adding(self) -> Iterator[Callable[[str, Stored], None]]:
        """Yields a function that adds an item. What was added stays, after an error too.

        Items are written together twice a minute, as one more part. The parts become one file at the end, or when there
        are many, so that a large store is not written again and again.
        """
        self._remove_stale_partials()
        pending: dict[str, Stored] = {}
        num_bytes, written = 0, time.monotonic()

        def add(key: str, stored: Stored) -> None:
            nonlocal num_bytes, written
            pending[key] = stored
            num_bytes += stored.features_VTF.nbytes
            if time.monotonic() - written >= _SAVE_EVERY or num_bytes >= _PART_BYTES:
                self._write_part(pending)
                pending.clear()
                if len(self._parts()) >= _MOST_PARTS:
                    self._merge()
                num_bytes, written = 0, time.monotonic()

        try:
            yield add
        finally:
            self._write_part(pending)
            self.close()
        self._merge()

    def close(self) -> None:
        """Lets go of the files. They are opened again when they are needed, and with them those that are new."""
        for file in self._files or ():
            file.close()
        self._files = None

    def _parts(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{self.path.stem}.*{_PART}"))

    def _open(self) -> list[h5py.File]:
        if self._files is None:
            # the main file last: a part that is merged and removed meanwhile is in it
            files = [self._read(path) for path in (*self._parts(), self.path)]
            self._files = [file for file in files if file is not None]
        return self._files

    def _read(self, path: Path) -> h5py.File | None:
        try:
            return h5py.File(path, "r")
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno is not None:  # the system's, and not the file's own fault
                raise
            log.warning("%s is no readable feature store and is begun anew: %s", path, error)
            return None

    def _write_part(self, items: Mapping[str, Stored]) -> None:
        if not items:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        name = f"{self.path.stem}.{uuid.uuid4().hex}{_PART}"
        with replacing(self.path.with_name(name)) as partial, h5py.File(partial, "w") as file:
            file.attrs["facts"] = self.facts
            for key, stored in items.items():
                item = file.create_dataset(key, data=stored.features_VTF)
                item.attrs["label"] = json.dumps(stored.label)  # a folder's name need not be UTF-8, HDF5's text must

    def _merge(self) -> None:
        """Makes one file of all. Where Windows does not let go of one that another process reads, a later call does."""
        self.close()
        parts = self._parts()
        if not parts:
            return
        with contextlib.suppress(PermissionError):
            with replacing(self.path) as partial:
                with h5py.File(partial, "w") as merged:
                    merged.attrs["facts"] = self.facts
                    for file in self._open():
                        for key in file:
                            if key not in merged:
                                file.copy(key, merged)
                self.close()
            for part in parts:
                part.unlink(missing_ok=True)

    def _remove_stale_partials(self) -> None:
        """Removes what killed processes have left half-written; a living one needs a minute at most."""
        for path in self.path.parent.glob(".*.partial"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _STALE:
                    path.unlink()


def digest(text: str) -> str:
    """32 hexadecimal digits that stand for the text."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]


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
        "torchvision": importlib.metadata.version("torchvision"),
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
        return file_identity(path) if os.path.exists(path) else None


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
