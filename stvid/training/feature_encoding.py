"""Training on frame features of a frozen encoder, computed once and stored: only the layers behind it are updated."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from stvid.data.cached_clips import CachedClips
from stvid.data.datamodule import VideoDataModule
from stvid.data.feature_filling import encoder_settings, fill_cache
from stvid.data.sampler import SampleKey
from stvid.device import autocast
from stvid.errors import InputError
from stvid.preprocess import Preprocess, encode_clips
from stvid.training.task import ClassificationTask

log = logging.getLogger(__name__)


def store_features(
    data: VideoDataModule,
    task: ClassificationTask,
    *,
    precision: str,
    device: torch.device,
    config: Mapping,
    verify: bool = True,
) -> float:
    """Makes the data module load features instead of clips, if its `features` is `auto` and the encoder is frozen.

    Computes the features that are not stored yet, in the precision of the run. Returns the seconds that this took.
    After an interruption, the next call goes on with what is missing.

    Args:
        data: set up.
        task: with the model, a `VideoModel`.
        precision: Lightning's name, from `resolve_precision`.
        device: device for the encoder.
        config: config of the model, as plain data; part of the key under which features are stored.
        verify: read all stored features and encode damaged ones again; one of several processes is enough.

    Raises:
        InputError: cutmix is on, which needs pixels; the disk of the cache is full, or what was written to it
            cannot be read.
    """
    if data.features == "off" or not (task.model.supports_feature_cache and task.model.backbone_is_frozen):
        return 0.0
    if task.mixing is not None and task.mixing.cutmix:
        raise InputError(
            f"mixing.cutmix (={task.mixing.cutmix}) needs pixels, but with a frozen encoder the model is trained on "
            "stored features: choose mixing=mixup, or data.features=off"
        )
    began = time.perf_counter()
    encoder = FeatureEncoder(data, task.model, task.preprocess, precision=precision, device=device, config=config)
    encoder.fill(data.use_cached_features(encoder.settings), verify=verify)
    log.info(
        "features are cached for %d random views of each training video; change: data.passes=N, data.features=off",
        data.passes,
    )
    task.model.train()
    return time.perf_counter() - began


class FeatureEncoder:
    """The frozen encoder of a model, which fills feature caches.

    Args:
        data: set up.
        model: a `VideoModel` with a frozen encoder.
        preprocess: of the model's clips.
        precision: Lightning's name, from `resolve_precision`.
        device: device for the encoder.
        config: config of the model, as plain data.

    Attributes:
        settings: what identifies the encoder and how it computes; part of the names of the caches' files.
    """

    def __init__(
        self,
        data: VideoDataModule,
        model: nn.Module,
        preprocess: Preprocess,
        *,
        precision: str,
        device: torch.device,
        config: Mapping,
    ):
        self.data, self.device, self.precision = data, device, precision
        self.model, self.preprocess = model.to(device).eval(), preprocess.to(device)
        self.runtime = model.encoding_runtime(precision=precision, device=device)  # type: ignore[operator] # a `VideoModel`
        self.settings = encoder_settings(
            model.backbone,  # type: ignore[arg-type]
            config,
            precision=precision,
            device=device,
            runtime=self.runtime,
        )

    @torch.inference_mode()
    def __call__(self, clips_BTCHW: Tensor, lengths_B: Tensor | None) -> Tensor:
        """Features B x T x F on the CPU."""
        lengths = None if lengths_B is None else lengths_B.to(self.device)
        with autocast(self.device, self.precision):
            return encode_clips(self.model, self.preprocess, clips_BTCHW.to(self.device), lengths).cpu()

    def fill(
        self,
        caches: Mapping[str, CachedClips],
        *,
        keys: Mapping[str, Sequence[SampleKey]] | None = None,
        verify: bool = True,
    ) -> None:
        """Encodes what is missing in the caches.

        Args:
            caches: split -> its samples.
            keys: split -> the samples to have there; None: all that training can request.
            verify: see `store_features`.

        Raises:
            InputError: see `fill_cache`.
        """
        data = self.data
        # on a CPU, larger batches are no faster, and the progress bar would stand still meanwhile
        batch_size = 1 if self.device.type == "cpu" else data.clips_per_batch
        feature_size = self(torch.zeros(1, 1, data.clip.channels, *data.clip.size, dtype=torch.uint8), None).shape[2]
        with self.model.encode_with(self.runtime):  # type: ignore[operator] # for all: converting one takes seconds
            for split, cached in caches.items():
                cached.feature_size = feature_size
                fill_cache(
                    cached,
                    data.all_keys(split) if keys is None else keys[split],
                    self,
                    name=split,
                    batch_size=batch_size,
                    num_workers=data.num_workers_alone,
                    verify=verify,
                    switch="data.features=off",
                )
