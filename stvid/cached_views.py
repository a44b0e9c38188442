"""Views of held-out videos as cached features of a frozen encoder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from stvid.data.cached_clips import CachedClips, collate_features, sample_settings
from stvid.data.dataset import Views
from stvid.data.feature_cache import FeatureCache
from stvid.data.feature_filling import encoder_settings, feature_folder, fill_cache
from stvid.data.sampler import SampleKey
from stvid.distributed import all_gather_object, get_rank, get_world_size
from stvid.files import why_not_writable
from stvid.run.checkpoint import TrainedModel

__all__ = ["cached_views", "collate_features"]
log = logging.getLogger(__name__)


class Runner(Protocol):
    """What is needed of a `ModelRunner`."""

    model: Any
    precision: str
    device: torch.device

    def encode(self, clips_VTCHW: Tensor, lengths_V: Tensor | None = None) -> Tensor: ...


def cached_views(
    trained: TrainedModel, views: Views, runner: Runner, cache: Path | None, *, batch_size: int, num_workers: int
) -> CachedClips | None:
    """The views as cached features; those that are missing are computed and stored.

    File and keys are those of training, so its validation videos need not be encoded again. The features are stored as
    float32, which holds every value of the encoder's output exactly, also in bf16 or float16. Encoding video by video
    instead of in batches rounds otherwise: the probabilities are those without a cache to 1e-6 in float32. Whether
    a feature is computed or read changes nothing.

    Args:
        trained: the model.
        views: of the items.
        runner: the model on its device.
        cache: see `classify`; the features lie beside it.
        batch_size: views per call of the encoder, on an accelerator.
        num_workers: processes that read videos.

    Returns:
        None if the folder is not writable. With several processes, which share the encoding: None if a view is missing.

    Raises:
        InputError: see `fill_cache`.
    """
    folder = feature_folder(cache)
    runtime = runner.model.encoding_runtime(precision=runner.precision, device=runner.device)
    settings = encoder_settings(
        runner.model.backbone,
        trained.config["model"],
        precision=runner.precision,
        device=runner.device,
        runtime=runtime,
    )
    cached = CachedClips(views, FeatureCache(folder, {**settings, **sample_settings(views)}))
    grey = torch.zeros(1, 1, trained.clip.channels, *trained.clip.size, dtype=torch.uint8)
    cached.feature_size = runner.encode(grey).shape[2]
    keys = [SampleKey(0, index) for index in range(len(views))]
    name = " and ".join(sorted({item.split for item in views.items}))
    if all(all_gather_object(not cached.missing_keys(keys))):
        if get_rank() == 0:
            log.info("features of %s: all %d cached; %s", name, len(keys), cached.cache.path)
        return cached
    if get_world_size() > 1:
        return None
    if (reason := why_not_writable(folder)) is not None:
        log.info("features are not cached: %s is not writable: %s", folder, reason)
        return None
    with runner.model.encode_with(runtime):
        fill_cache(
            cached,
            keys,
            runner.encode,
            name=name,
            batch_size=1 if runner.device.type == "cpu" else batch_size,
            num_workers=min(num_workers, len(views)),
            switch="--no-feature-cache",
        )
    return cached
