"""With a frozen encoder, every frame's features are computed once; then only what reads them is trained."""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from stvid.device import autocast
from stvid.errors import InputError
from stvid.files import one_at_a_time
from stvid.progress import Bar

log = logging.getLogger(__name__)
LIBRARIES = ("timm", "efficientnet-lite-pytorch")  # of encoders, beside torchvision


def store_features(data, task: nn.Module, *, precision: str, device: torch.device, config: Mapping) -> None:
    """Has the data module serve features instead of clips, if its `features` is `auto` and the encoder is frozen.

    What the stores do not have yet is computed here, in the run's own precision.

    Args:
        data: a `VideoDataModule`, set up.
        task: with `model` and `preprocess`; the model has `encoder_is_frozen` and `encode` where it has an encoder.
        precision: as `resolve_precision` gives it.
        device: where to compute.
        config: the model's, as plain data; with the weights, it tells one encoder from another.

    Raises:
        InputError: clips are to be cut, which features cannot be.
    """
    if data.features == "off" or not getattr(task.model, "encoder_is_frozen", False):
        return
    if getattr(task.mixing, "cutmix", 0):
        raise InputError(
            f"mixing.cutmix (={task.mixing.cutmix}) cuts pixels, and with a frozen encoder features are stored "
            "instead: mixing=mixup, or data.features=off"
        )
    model, preprocess = task.model.to(device).eval(), task.preprocess.to(device)

    @torch.inference_mode()
    def encode(clips_BTCHW: Tensor, lengths_B: Tensor | None) -> Tensor:
        lengths = None if lengths_B is None else lengths_B.to(device)
        with autocast(device, precision):
            clips = clips_BTCHW.to(device)
            if preprocess.normalize == "clip":
                return model.encode(preprocess(clips, lengths), lengths).cpu()
            return model.encode(clips, lengths, prepare=preprocess).cpu()

    encoder_settings = {
        "encoder": weights_fingerprint(model.encoder),
        "model": {key: str(value) for key, value in config.items() if key in ("_target_", "encoder", "image_size")},
        "precision": precision,
        "device": device.type,
        "torch": torch.__version__,
        **{name: version for name in LIBRARIES if (version := _version(name))},
    }
    for split, cached in data.use_cached_features(encoder_settings).items():
        with one_at_a_time(cached.cache.path):  # of several processes, one encodes
            _fill(split, cached, data, encode)
    log.info("random views of each training video: %d; data.passes=N keeps N, data.features=off none", data.passes)
    model.train()


def _fill(split: str, cached, data, encode: Callable[[Tensor, Tensor | None], Tensor]) -> None:
    keys = data.all_keys(split)
    cached.cache.close()  # another process may have added samples
    missing = cached.missing_keys(keys)
    log.info(
        "features of %s: %d cached, %d to encode; %s", split, len(keys) - len(missing), len(missing), cached.cache.path
    )
    began = time.perf_counter()
    while missing:  # once, unless another run has replaced the file meanwhile
        _encode(split, cached, missing, data, encode)
        missing = cached.missing_keys(keys)
        if not missing:
            log.info("encoded in %.1f s", time.perf_counter() - began)


def _encode(split: str, cached, keys: list, data, encode: Callable[[Tensor, Tensor | None], Tensor]) -> None:
    bar = Bar(f"encoding {split}", total=len(keys), unit="videos")
    with cached.cache.writer() as write, bar:
        for batch_keys, batch in cached.batches(keys, batch_size=data.batch_size, num_workers=data.num_workers_alone):
            if batch_keys:
                features_BTF = encode(batch["clips"], batch["lengths"])
                for cache_key, sample in cached.entries(batch_keys, batch, features_BTF):
                    write(cache_key, sample)
            bar.advance(len(batch_keys))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def weights_fingerprint(module: nn.Module) -> str:
    """64 hexadecimal digits: another one as soon as a single bit of a weight or a buffer is."""
    found = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
