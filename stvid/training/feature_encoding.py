"""Training on frame features of a frozen encoder, computed once and stored: only the layers behind it are updated."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

import torch
from torch import Tensor

from stvid.data.datamodule import VideoDataModule
from stvid.data.feature_filling import encoder_settings, fill_cache
from stvid.device import autocast
from stvid.errors import InputError
from stvid.preprocess import encode_clips
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
    model, preprocess = task.model.to(device).eval(), task.preprocess.to(device)

    @torch.inference_mode()
    def encode(clips_BTCHW: Tensor, lengths_B: Tensor | None) -> Tensor:
        lengths = None if lengths_B is None else lengths_B.to(device)
        with autocast(device, precision):
            return encode_clips(model, preprocess, clips_BTCHW.to(device), lengths).cpu()

    runtime = model.encoding_runtime(precision=precision, device=device)  # type: ignore[operator] # a `VideoModel`
    backbone = model.backbone
    settings = encoder_settings(backbone, config, precision=precision, device=device, runtime=runtime)  # type: ignore[arg-type]
    began = time.perf_counter()
    # on a CPU, larger batches are no faster, and the progress bar would stand still meanwhile
    batch_size = 1 if device.type == "cpu" else data.clips_per_batch
    feature_size = encode(torch.zeros(1, 1, data.clip.channels, *data.clip.size, dtype=torch.uint8), None).shape[2]
    with model.encode_with(runtime):  # type: ignore[operator] # for all splits: converting an encoder takes seconds
        for split, cached in data.use_cached_features(settings).items():
            cached.feature_size = feature_size
            fill_cache(
                cached,
                data.all_keys(split),
                encode,
                name=split,
                batch_size=batch_size,
                num_workers=data.num_workers_alone,
                verify=verify,
                switch="data.features=off",
            )
    seconds = time.perf_counter() - began
    log.info(
        "features are cached for %d random views of each training video; change: data.passes=N, data.features=off",
        data.passes,
    )
    model.train()
    return seconds
