"""The LightningDataModule: from a Manifest to the data loaders of training and validation."""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch.utils.data import DataLoader

from stvid.clip import ClipSpec
from stvid.data.cached_clips import CachedClips, collate_features, sample_settings
from stvid.data.dataset import Batch, TrainingClips, Views, collate
from stvid.data.feature_cache import FeatureCache
from stvid.data.feature_filling import feature_folder
from stvid.data.loading import (
    check_bad,
    check_lengths,
    check_views,
    clip_lengths,
    probe_cache,
    probe_items,
    resolve_workers,
    tar_places,
    views_loader,
    warn_of_small_cache,
    worker_options,
)
from stvid.data.manifest import NAME_GROUPS, Manifest, validate
from stvid.data.sampler import EpochSampler, SampleKey
from stvid.data.timed_loader import TimedLoader
from stvid.data.transforms import Augment
from stvid.distributed import is_main_process
from stvid.errors import InputError, VideoError
from stvid.video.reader import BACKENDS, INSTALL, is_installed
from stvid.video.types import MAX_PIXELS, VideoInfo

log = logging.getLogger(__name__)

BALANCES = ("none", "classes", "loss")
PROBES = ("decode", "count")
FEATURES = ("auto", "off")


class VideoDataModule(pl.LightningDataModule):
    """Loads the training clips and validation views of a data set.

    Args:
        manifest: the data set.
        clip: the clip's geometry.
        augment: random changes to training clips.
        batch_size: clips per batch and rank; `auto`: set by the training once the model is known.
        num_workers: worker processes per rank; `auto`: see `resolve_workers`; 0 reads in the training process.
        num_clips: clips per validation video.
        num_crops: crops per validation clip.
        seed: random choices depend only on seed, epoch and item.
        allow_leaks: allow the same file or group in two splits.
        allow_similar_classes: allow class names that look the same, see `similar_classes`.
        max_bad: maximum fraction of unreadable videos, in [0, 1]; above it the run does not start.
        whole_video: every clip is a whole video, as with `clip.num_frames=None`: the clips of a batch have similar
            lengths, and a validation video has one clip.
        passes: number of different random clips per training video: epoch e uses those of epoch e modulo `passes`.
            None: every epoch has new ones.
        features: `auto`: with a frozen encoder, features are computed once and cached (see `use_cached_features`), and
            `passes=None` means 1; `off`: every epoch encodes again.
        balance: compensation for unequal class sizes in training: `none`; `classes`: sample every class equally often;
            `loss`: give every class equal weight in the loss (see `class_weights`).
        probe: `decode` every file once before the first run, which finds all broken files; `count` packets where
            possible, which is faster, but finds a file that breaks half way only when it is read.
        probe_timeout: seconds without a new frame after which a file that is probed is given up.
        max_pixels: of a frame or image, height times width; larger ones are unreadable, before they are decoded.
        backend: `pyav`, `decord` or `torchcodec`, see `read_frames`.
        shuffle_buffer: items that are shuffled together if the videos are in tars, see `places` of `EpochSampler`.

    Raises:
        InputError: a value out of its range; a backend that is not installed; an invalid manifest (see `validate`); an
            unknown class in `flip_pairs`.
    """

    allow_zero_length_dataloader_with_multiple_devices = True  # a small val split may leave some ranks without a batch

    def __init__(
        self,
        *,
        manifest: Manifest,
        clip: ClipSpec,
        augment: Augment,
        batch_size: int | str = 16,
        num_workers: int | str = "auto",
        num_clips: int = 1,
        num_crops: int = 1,
        seed: int = 0,
        allow_leaks: bool = False,
        allow_similar_classes: bool = False,
        max_bad: float = 0.05,
        whole_video: bool = False,
        passes: int | None = None,
        features: str = "auto",
        balance: str = "none",
        probe: str = "decode",
        probe_timeout: float = 60.0,
        max_pixels: int = MAX_PIXELS,
        backend: str = "pyav",
        shuffle_buffer: int = 2000,
    ):
        super().__init__()
        if whole_video or clip.num_frames is None:
            clip, num_clips = replace(clip, num_frames=None), 1
        check_views(num_clips, num_crops, clip)
        if passes is not None and passes < 1:
            raise InputError(f"data.passes (={passes}) must be at least 1, or null for new clips in every epoch")
        if batch_size != "auto" and (not isinstance(batch_size, int) or batch_size < 1):
            raise InputError(f"data.batch_size (={batch_size}) must be at least 1, or auto")
        if not 0 <= max_bad <= 1:
            raise InputError(f"data.max_bad (={max_bad}) must be in [0, 1]")
        _check_choice("data.balance", balance, BALANCES)
        _check_choice("data.probe", probe, PROBES)
        _check_choice("data.features", features, FEATURES)
        _check_choice("data.backend", backend, BACKENDS)
        if not is_installed(backend):
            raise InputError(f"data.backend={backend} is not installed: {INSTALL[backend]}")
        if probe_timeout <= 0:
            raise InputError(f"data.probe_timeout (={probe_timeout}) must be above 0")
        if not isinstance(max_pixels, int) or max_pixels < 1:
            raise InputError(f"data.max_pixels (={max_pixels}) must be a whole number of at least 1")
        if not isinstance(shuffle_buffer, int) or shuffle_buffer < 1:
            raise InputError(f"data.shuffle_buffer (={shuffle_buffer}) must be a whole number of at least 1")
        self.shuffle_buffer = shuffle_buffer
        self.balance, self.backend, self.passes, self.features = balance, backend, passes, features
        self.cached: dict[str, CachedClips] = {}
        self.position = (0, 0)  # start of training: the epoch, and how many of its batches are done
        self.decode_all, self.probe_timeout = probe == "decode", probe_timeout
        self.max_pixels = max_pixels
        self.manifest = validate(manifest, allow_leaks=allow_leaks, allow_similar_classes=allow_similar_classes)
        if manifest.items and all(item.group is None for item in manifest.items) and is_main_process():
            _warn_without_groups(manifest.items[0].path)
        augment.check_classes(manifest.class_names)
        self.clip, self.augment, self.seed, self.max_bad = clip, augment, seed, max_bad
        resolve_workers(num_workers)
        self.batch_size, self.requested_workers = batch_size, num_workers
        self.protocol = {"num_clips": num_clips, "num_crops": num_crops}

    @property
    def num_workers(self) -> int:
        """Worker processes of this rank while all ranks on this machine read."""
        return resolve_workers(self.requested_workers, num_processes=self.trainer.num_devices if self.trainer else None)

    @property
    def num_workers_alone(self) -> int:
        """Worker processes of this rank while the other ranks wait."""
        return resolve_workers(self.requested_workers, num_processes=1)

    @property
    def clips_per_batch(self) -> int:
        """`batch_size`, once it is a number.

        Raises:
            InputError: it is still `auto`.
        """
        if isinstance(self.batch_size, str):
            raise InputError(
                f"data.batch_size (={self.batch_size}) becomes a number in training only; give a number here"
            )
        return self.batch_size

    @property
    def class_weights(self) -> list[float] | None:
        """With `balance=loss`, `N / (K * n)` for each of K classes with n of N training videos; else None."""
        if self.balance != "loss":
            return None
        items = self.train.items if hasattr(self, "train") else self.manifest.select("train")
        counts = Counter(item.label for item in items)
        names = self.manifest.class_names
        return [counts.total() / (len(names) * counts[name]) for name in names]

    def setup(self, stage: str | None = None) -> None:
        """Probes the files of train and val, with a cache, and creates the datasets. `bad`: path -> reason."""
        if hasattr(self, "train"):
            return
        items = (*self.manifest.select("train"), *self.manifest.select("val"))
        infos = probe_items(
            items,
            num_workers=self.num_workers,
            cache=probe_cache(self.manifest),
            decode_all=self.decode_all,
            timeout=self.probe_timeout,
            max_pixels=self.max_pixels,
        )
        bad = [info for info in infos if isinstance(info, VideoError)]
        self.max_bad_videos = self.max_bad * len(items)
        self.bad = {error.path: error.reason for error in bad}
        check_bad(bad, num_items=len(items), max_bad=self.max_bad)
        num_train = len(self.manifest.select("train"))
        shared: dict[str, Any] = {
            "class_names": self.manifest.class_names,
            "clip": self.clip,
            "seed": self.seed,
            "backend": self.backend,
            "max_pixels": self.max_pixels,
        }
        self.train = TrainingClips(items=items[:num_train], infos=infos[:num_train], augment=self.augment, **shared)
        self.val = Views(
            items=items[num_train:],
            infos=infos[num_train:],
            num_clips=self.protocol["num_clips"],
            num_crops=self.protocol["num_crops"],
            **shared,
        )
        for dataset in (self.train, self.val):
            check_lengths(dataset)

    def move_val_to_train(self) -> None:
        """Makes the videos of val training videos too, after `setup`; there is no val any more."""
        items, infos = (*self.train.items, *self.val.items), (*self.train.infos, *self.val.infos)
        self.train = replace(self.train, items=items, infos=infos)
        self.val = replace(self.val, items=(), infos=())
        self.cached, self.position = {}, (0, 0)

    @property
    def infos(self) -> dict[str, VideoInfo | VideoError]:
        """Path -> what probing has found, of the videos for train and val; after `setup`."""
        return {
            item.path: info
            for clips in (self.train, self.val)
            for item, info in zip(clips.items, clips.infos, strict=True)
        }

    def use_cached_features(self, encoder_settings: Mapping) -> dict[str, CachedClips]:
        """Makes batches hold cached features instead of clips; the caller fills the caches before training.

        The caches are in the folder of `feature_folder`.

        Args:
            encoder_settings: plain data that identifies the encoder.

        Returns:
            The cached datasets of `train` and `val`, to be filled with the samples of `all_keys`.
        """
        self.cached = self.feature_caches(encoder_settings, folder=feature_folder(probe_cache(self.manifest)))
        return self.cached

    def feature_caches(self, encoder_settings: Mapping, *, folder: Path) -> dict[str, CachedClips]:
        """The cached datasets of `train` and `val` in a folder, without using them for batches."""
        self.passes = self.passes or 1
        return {
            split: CachedClips(clips, FeatureCache(folder, {**encoder_settings, **sample_settings(clips)}))
            for split, clips in (("train", self.train), ("val", self.val))
        }

    def all_keys(self, split: str) -> list[SampleKey]:
        """All keys that the loader of `train` or `val` can request."""
        if split == "val":
            return list(EpochSampler(num_items=len(self.val), shuffle=False))
        return self._train_sampler().all_keys()

    @property
    def augments_on_device(self) -> bool:
        """Whether clips are augmented on the trainer's device, after the crop, and not by the workers."""
        if self.trainer is None or self.augment.device == "cpu":
            return False
        device = self.trainer.strategy.root_device.type
        return device == "cuda" or (self.augment.device == "gpu" and device != "cpu")

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Finishes a batch on the device, see `TrainingClips.augment_batch`."""
        return self.train.augment_batch(batch)

    def train_dataloader(self) -> DataLoader:
        """Batches of training clips; the first epoch starts at `position`.

        With `augments_on_device`, `on_after_batch_transfer` has to finish them.
        """
        sampler = self._train_sampler()
        epoch, num_batches = self.position  # Lightning creates the iterator before it sets the epoch
        sampler.set_epoch(epoch, start=num_batches * self.clips_per_batch)
        if not self.cached and is_main_process():
            warn_of_small_cache(self.train.items, window=self.shuffle_buffer)
        clips = replace(self.train, augments_later=self.augments_on_device)
        return TimedLoader(
            self.cached.get("train", clips),
            batch_size=self.clips_per_batch,
            sampler=sampler,
            drop_last=len(sampler) >= self.clips_per_batch,  # batch norm fails on a last batch of one clip
            collate_fn=collate_features if self.cached else collate,
            **worker_options(0 if self.cached else self.num_workers, persistent=True),
        )

    def val_dataloader(self) -> DataLoader:
        rank, world_size = self._rank()
        return views_loader(
            self.val,
            batch_size=self.clips_per_batch,
            num_workers=0 if self.cached else self.num_workers,
            cached=self.cached.get("val"),
            collate_fn=collate_features if self.cached else collate,
            rank=rank,
            world_size=world_size,
        )

    def _train_sampler(self) -> EpochSampler:
        rank, world_size = self._rank()
        return EpochSampler(
            num_items=len(self.train),
            shuffle=True,
            seed=self.seed,
            labels=[item.label for item in self.train.items] if self.balance == "classes" else None,
            lengths=clip_lengths(self.train),
            batch_size=self.clips_per_batch,
            places=tar_places(self.train.items),
            window=self.shuffle_buffer,
            passes=self.passes,
            rank=rank,
            world_size=world_size,
        )

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)


@functools.cache  # once, not for every trial of a sweep
def _warn_without_groups(first_video: str) -> None:
    log.warning(
        "no groups are named, so clips of one recording may be in several splits, and the accuracy too good; "
        "stvid check proposes groups. To name them: %s",
        NAME_GROUPS,
    )


def _check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{key} (={value}) must be one of {', '.join(choices)}")
