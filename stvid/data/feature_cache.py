"""Caches the features of a frozen encoder in an HDF5 file, and serves them to training instead of clips.

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
from stvid.data.sampler import SampleKey, resolve_key
from stvid.errors import VideoError
from stvid.files import replacing
from stvid.video.types import AV_VERSION, file_identity

log = logging.getLogger(__name__)
FORMAT_VERSION = 2  # of the files; another version starts a new cache
_PART_SUFFIX = ".part.h5"
_SAVE_EVERY = 30.0  # seconds
_MAX_PART_BYTES = 2**28  # of features in memory before they are written
_MAX_PARTS = 100  # all parts are open at the same time
_STALE_SECONDS = 3600.0  # a partial file older than this is left over from a killed process
FRAME_SELECTION_VERSION = 2  # raise it when the same settings select other frames; 2: clip.short=wrap


@dataclass(frozen=True, kw_only=True)
class CachedFeatures:
    """The cached features of one sample.

    Attributes:
        features_VTF: float32.
        label: class name; a flip may have changed the item's label.
    """

    features_VTF: np.ndarray
    label: str


class FeatureCache:
    """An HDF5 file, and part files beside it that have not been merged into it yet; all of them are read.

    The file name is a hash of all settings that affect the features: another encoder, other weights or another
    preprocessing use another file, so features are never out of date. The keys of the samples identify the videos.

    A file is written completely before it gets its name, and never changes: other processes can read it at any time,
    and a killed process loses at most the samples of the last half minute.

    Args:
        folder: folder of the files, created if missing; it holds nothing else.
        settings: all settings that affect the features, as plain data; also written to the files, for information.
    """

    def __init__(self, folder: Path, settings: Mapping):
        self.settings = json.dumps({"format": FORMAT_VERSION, **settings}, sort_keys=True)
        self.path = Path(folder) / f"{hash_text(self.settings)}.h5"
        self._files: list[h5py.File] | None = None

    def __contains__(self, key: str) -> bool:
        return any(key in file for file in self._open())

    def __len__(self) -> int:
        return len({key for file in self._open() for key in file})

    def __getitem__(self, key: str) -> CachedFeatures:
        for file in self._open():
            if key in file:
                return CachedFeatures(features_VTF=file[key][()], label=json.loads(file[key].attrs["label"]))
        raise KeyError(key)

    @contextlib.contextmanager
    def writer(self) -> Iterator[Callable[[str, CachedFeatures], None]]:
        """Yields a function that adds a sample. Added samples are kept after an error.

        Every half minute the new samples are written as a new part file. The parts are merged at the end, or when there
        are many, so that a large file is not rewritten again and again.
        """
        self._remove_stale_partials()
        pending: dict[str, CachedFeatures] = {}
        num_bytes, last_write = 0, time.monotonic()

        def add(key: str, sample: CachedFeatures) -> None:
            nonlocal num_bytes, last_write
            pending[key] = sample
            num_bytes += sample.features_VTF.nbytes
            if time.monotonic() - last_write >= _SAVE_EVERY or num_bytes >= _MAX_PART_BYTES:
                self._write_part(pending)
                pending.clear()
                if len(self._parts()) >= _MAX_PARTS:
                    self._merge()
                num_bytes, last_write = 0, time.monotonic()

        try:
            yield add
        finally:
            self._write_part(pending)
            self.close()
        self._merge()

    def close(self) -> None:
        """Closes the files. The next access opens them again, together with new ones."""
        for file in self._files or ():
            file.close()
        self._files = None

    def _parts(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{self.path.stem}.*{_PART_SUFFIX}"))

    def _open(self) -> list[h5py.File]:
        if self._files is None:
            # open the main file last: it contains parts that are merged meanwhile
            files = [self._read(path) for path in (*self._parts(), self.path)]
            self._files = [file for file in files if file is not None]
        return self._files

    def _read(self, path: Path) -> h5py.File | None:
        try:
            return h5py.File(path, "r")
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno is not None:  # an error of the system, not a damaged file
                raise
            log.warning("%s is not a readable feature cache and is replaced: %s", path, error)
            return None

    def _write_part(self, samples: Mapping[str, CachedFeatures]) -> None:
        if not samples:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        name = f"{self.path.stem}.{uuid.uuid4().hex}{_PART_SUFFIX}"
        with replacing(self.path.with_name(name)) as partial, h5py.File(partial, "w") as file:
            file.attrs["settings"] = self.settings
            for key, sample in samples.items():
                entry = file.create_dataset(key, data=sample.features_VTF)
                entry.attrs["label"] = json.dumps(sample.label)  # folder names may not be UTF-8, HDF5 text must be

    def _merge(self) -> None:
        """Merges all files into one. Windows refuses while another process reads one of them; a later call succeeds."""
        self.close()
        parts = self._parts()
        if not parts:
            return
        with contextlib.suppress(PermissionError):
            with replacing(self.path) as partial:
                with h5py.File(partial, "w") as merged:
                    merged.attrs["settings"] = self.settings
                    for file in self._open():
                        for key in file:
                            if key not in merged:
                                file.copy(key, merged)
                self.close()
            for part in parts:
                part.unlink(missing_ok=True)

    def _remove_stale_partials(self) -> None:
        """Removes partial files of killed processes; a running process needs at most a minute."""
        for path in self.path.parent.glob(".*.partial"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                    path.unlink()


def hash_text(text: str) -> str:
    """Hash of a text, 32 hexadecimal digits."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]


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
        return {**common, "seed": dataset.seed, "augment": dataclasses.asdict(dataset.augment)}
    assert isinstance(dataset, Views)
    return {**common, "num_clips": dataset.num_clips, "num_crops": dataset.num_crops, "playback": dataset.playback}


class CachedClips(Dataset):
    """The samples of a `VideoDataset` as cached features, with the same keys.

    To fill the cache: encode `batches(missing_keys(keys), ...)`, and write `entries(...)` of each batch.

    Args:
        clips: the dataset.
        cache: the cache, which must contain a sample before it is used.
    """

    def __init__(self, clips: VideoDataset, cache: FeatureCache):
        self.clips, self.cache = clips, cache
        self.files = [self._identity(index) for index in range(len(clips))]
        self.failed: dict[SampleKey, Failure] = {}
        self.num_views = clips.num_clips * clips.num_crops if isinstance(clips, Views) else 1

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, key: SampleKey | tuple[int, ...] | int) -> FeatureSample | Failure:
        key = resolve_key(key, len(self))
        if isinstance(info := self.clips.infos[key.index], VideoError):
            return self.clips.make_failure(key.index, info)
        if key in self.failed:
            return self.failed[key]
        sample = self.cache[self.cache_key(key)]
        features = torch.from_numpy(sample.features_VTF)
        path, label = self.clips.items[key.index].path, self.clips.class_index(sample.label)
        return FeatureSample(features=features, label=label, video=key.index, path=path)

    def cache_key(self, key: SampleKey) -> str:
        """Hash of the sample's file in its current state, its times and label, and epoch and repeat if it is random."""
        random_key = [key.epoch, key.repeat] if isinstance(self.clips, TrainingClips) else []
        item, info = self.clips.items[key.index], self.clips.info(key.index)
        file = [item.path, self.files[key.index], info.num_frames]  # a broken file's depends on how it was probed
        return hash_text(json.dumps([*file, item.start, item.end, item.label, random_key]))

    def missing_keys(self, keys: Sequence[SampleKey]) -> list[SampleKey]:
        """The keys without a cached sample, except those of videos that are known to be unreadable."""
        infos = self.clips.infos
        readable = (key for key in keys if key not in self.failed and not isinstance(infos[key.index], VideoError))
        return [key for key in readable if self.cache_key(key) not in self.cache]

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
