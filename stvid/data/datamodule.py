"""Loaders for training and validation: a Manifest in, batches out."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytorch_lightning as pl
from torch.utils.data import DataLoader

from stvid.clip import ClipSpec
from stvid.data.dataset import TrainingClips, Views, collate
from stvid.data.feature_cache import FeatureStore, StoredClips, collate_stored
from stvid.data.feature_cache import sample_facts as stored_facts
from stvid.data.loading import (
    TimedLoader,
    check_bad,
    check_lengths,
    check_views,
    clip_lengths,
    probe_cache,
    probe_items,
    resolve_workers,
    views_loader,
    worker_options,
)
from stvid.data.manifest import Manifest, validate
from stvid.data.sampler import EpochSampler, SampleKey
from stvid.data.transforms import Augment
from stvid.errors import InputError, VideoError
from stvid.video.reader import BACKENDS, INSTALL, is_installed

log = logging.getLogger(__name__)

BALANCES = ("none", "classes", "loss")
PROBES = ("decode", "count")
FEATURES = ("auto", "off")
FEATURES_NAME = ".stvid_features"


class VideoDataModule(pl.LightningDataModule):
    """Batches of a data set's training clips and validation views.

    Args:
        manifest: the data set.
        clip: the clip's geometry.
        augment: random changes to training clips.
        batch_size: clips in a batch, for each process; with `auto`, who trains sets it once the model is known.
        num_workers: processes that read videos, for each process that trains; `auto`: one for two cores of its share,
            at most 8; 0 reads in the training process.
        num_clips: clips a validation video is judged by.
        num_crops: crops of each of them.
        seed: with epoch and item, all that a random choice depends on.
        allow_leaks: let the same file or group stand in two splits.
        max_bad: share of unreadable videos, in [0, 1], above which the run stops before it starts.
        whole_video: every clip is its whole video, as `clip.num_frames=None`: clips of one batch then have different
            lengths, those of similar length come together, and a held-out video is judged by that one clip.
        passes: how many random draws of each training video there are: epoch e takes those of epoch e modulo this.
            None: every epoch has its own.
        features: `auto`: with a frozen encoder, frames' features are computed once and kept (see `use_features`), and
            `passes` is 1 where it is None; `off`: every epoch encodes anew.
        balance: how small classes come to their right in training. `none`; `classes`: every class is drawn equally
            often; `loss`: every class weighs equally in the loss (see `class_weights`).
        probe: `decode` every file once before the first run, so that a broken one is known beforehand; `count` packets
            where that will do, which is quicker: a file that breaks half way is then met when it is read.
        probe_timeout: seconds that this may take for one file, and one more for each megabyte it has.
        backend: `pyav`, `decord` or `torchcodec`, see `read_frames`.

    Raises:
        InputError: a value out of its range; a backend that is not installed; what `validate` finds; a class in
            `flip_pairs` that is not there; no videos to validate on.
    """

    allow_zero_length_dataloader_with_multiple_devices = True  # a small val split may not reach every process

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
        max_bad: float = 0.05,
        whole_video: bool = False,
        passes: int | None = None,
        features: str = "auto",
        balance: str = "none",
        probe: str = "decode",
        probe_timeout: float = 60.0,
        backend: str = "pyav",
    ):
        super().__init__()
        if whole_video or clip.num_frames is None:
            clip, num_clips = replace(clip, num_frames=None), 1
        check_views(num_clips, num_crops, clip)
        if passes is not None and passes < 1:
            raise InputError(f"data.passes (={passes}) must be at least 1, or null for new ones in every epoch")
        if batch_size != "auto" and (not isinstance(batch_size, int) or batch_size < 1):
            raise InputError(f"data.batch_size (={batch_size}) must be at least 1, or auto")
        if not 0 <= max_bad <= 1:
            raise InputError(f"data.max_bad (={max_bad}) must lie in [0, 1]")
        _check_choice("data.balance", balance, BALANCES)
        _check_choice("data.probe", probe, PROBES)
        _check_choice("data.features", features, FEATURES)
        _check_choice("data.backend", backend, BACKENDS)
        if not is_installed(backend):
            raise InputError(f"data.backend={backend} is not installed: {INSTALL[backend]}")
        if probe_timeout <= 0:
            raise InputError(f"data.probe_timeout (={probe_timeout}) must be above 0")
        self.balance, self.backend, self.passes, self.features = balance, backend, passes, features
        self.stored: dict[str, StoredClips] = {}
        self.position = (0, 0)  # where training begins: the epoch, and how many of its batches are done
        self.probing = {"decode_all": probe == "decode", "timeout": probe_timeout}
        self.manifest = validate(manifest, allow_leaks=allow_leaks)
        if not manifest.select("val"):
            raise InputError("the data set has no validation videos: no item has split 'val'")
        augment.check_classes(manifest.class_names)
        self.clip, self.augment, self.seed, self.max_bad = clip, augment, seed, max_bad
        resolve_workers(num_workers)
        self.batch_size, self.asked_workers = batch_size, num_workers
        self.protocol = {"num_clips": num_clips, "num_crops": num_crops}

    @property
    def num_workers(self) -> int:
        """Processes that read videos for this process, while all that train on this machine read at once."""
        return resolve_workers(self.asked_workers, num_processes=self.trainer.num_devices if self.trainer else None)

    @property
    def num_workers_alone(self) -> int:
        """The same, while the others wait for this process."""
        return resolve_workers(self.asked_workers, num_processes=1)

    @property
    def class_weights(self) -> list[float] | None:
        """With `balance=loss`, `N / (K * n)` for a class with n of N training videos, K classes; else None."""
        if self.balance != "loss":
            return None
        counts = Counter(item.label for item in self.manifest.select("train"))
        names = self.manifest.class_names
        return [counts.total() / (len(names) * counts[name]) for name in names]

    def setup(self, stage: str | None = None) -> None:
        """Probes the files of train and val (from the cache where that was done before); `bad`: path -> reason."""
        if hasattr(self, "train"):
            return
        items = (*self.manifest.select("train"), *self.manifest.select("val"))
        infos = probe_items(items, num_workers=self.num_workers, cache=probe_cache(self.manifest), **self.probing)
        bad = [info for info in infos if isinstance(info, VideoError)]
        self.most_bad = self.max_bad * len(items)
        self.bad = {error.path: error.reason for error in bad}
        check_bad(bad, num_items=len(items), max_bad=self.max_bad)
        num_train = len(self.manifest.select("train"))
        shared = {
            "class_names": self.manifest.class_names,
            "clip": self.clip,
            "seed": self.seed,
            "backend": self.backend,
        }
        self.train = TrainingClips(items=items[:num_train], infos=infos[:num_train], augment=self.augment, **shared)
        self.val = Views(
            items=items[num_train:],
            infos=infos[num_train:],
            **self.protocol,
            **shared,
        )
        for dataset in (self.train, self.val):
            check_lengths(dataset)

    def use_features(self, facts: Mapping) -> dict[str, StoredClips]:
        """From now on, batches hold stored features instead of clips; whoever asks for it fills the stores first.

        They lie in a hidden folder beside the videos, or in the working directory where that cannot be written to.

        Args:
            facts: what tells the encoder from any other, as plain data.

        Returns:
            For `train` and `val` what is to be filled, with the draws that `draws` names.
        """
        cache = probe_cache(self.manifest)
        beside = cache and os.access(cache.parent, os.W_OK)
        folder = cache.parent if beside else Path.cwd()
        if not beside:
            log.info("features are kept in %s, since the videos' folder cannot be written to", folder / FEATURES_NAME)
        for name, clips in (("train", self.train), ("val", self.val)):
            store = FeatureStore(folder / FEATURES_NAME, {**facts, **stored_facts(clips)})
            self.stored[name] = StoredClips(clips, store)
        self.passes = self.passes or 1
        return self.stored

    def draws(self, name: str) -> list[SampleKey]:
        """All that the loaders of `train` or `val` can ask of a data set."""
        if name == "val":
            return list(EpochSampler(num_items=len(self.val), shuffle=False))
        return self._train_sampler().every_draw()

    def train_dataloader(self) -> DataLoader:
        """Batches of one epoch after the other, from `position` on."""
        sampler = self._train_sampler()
        epoch, num_batches = self.position  # Lightning wants an iterator before it says which epoch it is
        sampler.set_epoch(epoch, start=num_batches * self.batch_size)
        return TimedLoader(
            self.stored.get("train", self.train),
            batch_size=self.batch_size,
            sampler=sampler,
            drop_last=len(sampler) >= self.batch_size,  # a last batch of one clip would upset batch norm
            collate_fn=collate_stored if self.stored else collate,
            **worker_options(0 if self.stored else self.num_workers, persistent=True),
        )

    def val_dataloader(self) -> DataLoader:
        rank, world_size = self._rank()
        return views_loader(
            self.val,
            batch_size=self.batch_size,
            num_workers=0 if self.stored else self.num_workers,
            stored=self.stored.get("val"),
            collate_fn=collate_stored if self.stored else collate,
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
            batch_size=self.batch_size,
            passes=self.passes,
            rank=rank,
            world_size=world_size,
        )

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)


def _check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{key} (={value}) must be one of {', '.join(choices)}")
