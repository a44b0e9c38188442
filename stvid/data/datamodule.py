"""Loaders for training and validation: a Manifest in, batches out."""

from __future__ import annotations

import pytorch_lightning as pl
from torch.utils.data import DataLoader

from stvid.clip import ClipSpec
from stvid.data.dataset import EpochSampler, TrainingClips, Views, collate
from stvid.data.loading import (
    check_bad,
    check_lengths,
    check_views,
    probe_cache,
    probe_items,
    resolve_workers,
    views_loader,
    worker_options,
)
from stvid.data.manifest import Manifest, validate
from stvid.data.transforms import Augment
from stvid.errors import InputError
from stvid.video.errors import VideoError


class VideoDataModule(pl.LightningDataModule):
    """Batches of a data set's training clips and validation views.

    Args:
        manifest: the data set.
        clip: the clip's geometry.
        augment: random changes to training clips.
        batch_size: clips in a batch, for each process.
        num_workers: processes that read videos; `auto`: one for two cores, at most 8; 0 reads in the training process.
        num_clips: clips a validation video is judged by.
        num_crops: crops of each of them.
        seed: with epoch and item, all that a random choice depends on.
        allow_leaks: let the same file or group stand in two splits.
        max_bad: share of unreadable videos, in [0, 1], above which the run stops before it starts.

    Raises:
        InputError: what `validate` finds; a `flip_pairs` class that is not there; no videos to validate on.
    """

    def __init__(
        self,
        *,
        manifest: Manifest,
        clip: ClipSpec,
        augment: Augment,
        batch_size: int = 16,
        num_workers: int | str = "auto",
        num_clips: int = 1,
        num_crops: int = 1,
        seed: int = 0,
        allow_leaks: bool = False,
        max_bad: float = 0.05,
    ):
        super().__init__()
        check_views(num_clips, num_crops)
        if batch_size < 1:
            raise InputError(f"data.batch_size (={batch_size}) must be at least 1")
        if not 0 <= max_bad <= 1:
            raise InputError(f"data.max_bad (={max_bad}) must lie in [0, 1]")
        self.manifest = validate(manifest, allow_leaks=allow_leaks)
        if not manifest.select("val"):
            raise InputError("the data set has no validation videos: no item has split 'val'")
        augment.check_classes(manifest.class_names)
        self.clip, self.augment, self.seed, self.max_bad = clip, augment, seed, max_bad
        self.batch_size, self.num_workers = batch_size, resolve_workers(num_workers)
        self.protocol = {"num_clips": num_clips, "num_crops": num_crops}

    def setup(self, stage: str | None = None) -> None:
        """Probes the files of train and val (from the cache where that was done before)."""
        if hasattr(self, "train"):
            return
        items = (*self.manifest.select("train"), *self.manifest.select("val"))
        infos = probe_items(items, num_workers=self.num_workers, cache=probe_cache(self.manifest))
        bad = [info for info in infos if isinstance(info, VideoError)]
        check_bad(bad, num_items=len(items), max_bad=self.max_bad)
        num_train = len(self.manifest.select("train"))
        shared = {"class_names": self.manifest.class_names, "clip": self.clip, "seed": self.seed}
        self.train = TrainingClips(items=items[:num_train], infos=infos[:num_train], augment=self.augment, **shared)
        self.val = Views(
            items=items[num_train:],
            infos=infos[num_train:],
            **self.protocol,
            **shared,
        )
        for dataset in (self.train, self.val):
            check_lengths(dataset)

    def train_dataloader(self) -> DataLoader:
        rank, world_size = self._rank()
        sampler = EpochSampler(
            num_items=len(self.train), shuffle=True, seed=self.seed, rank=rank, world_size=world_size
        )
        return DataLoader(
            self.train,
            batch_size=self.batch_size,
            sampler=sampler,
            drop_last=len(sampler) >= self.batch_size,  # a last batch of one clip would upset batch norm
            collate_fn=collate,
            **worker_options(self.num_workers),
        )

    def val_dataloader(self) -> DataLoader:
        rank, world_size = self._rank()
        return views_loader(
            self.val, batch_size=self.batch_size, num_workers=self.num_workers, rank=rank, world_size=world_size
        )

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
