"""Frame features of a frozen encoder, computed once and stored; training then updates only the layers behind it."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import logging
import time
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from stvid.data.cached_clips import CachedClips
from stvid.data.datamodule import VideoDataModule
from stvid.data.feature_cache import FeatureCache
from stvid.device import autocast
from stvid.disks import full_disk_error, system_error_text
from stvid.errors import InputError
from stvid.files import file_lock
from stvid.preprocess import encode_clips
from stvid.progress import Bar
from stvid.training.task import ClassificationTask

log = logging.getLogger(__name__)
ENCODER_KEYS = ("_target_", "encoder", "image_size")  # config keys of our models that change the features
LIBRARIES = ("timm", "efficientnet-lite-pytorch")  # with encoders, besides torchvision
_MAX_PASSES = 2  # the second if another run has replaced the file meanwhile


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

    is_ours = str(config["_target_"]).startswith("stvid.")
    encoder_settings = {
        "encoder": weights_fingerprint(model.backbone),  # type: ignore[arg-type] # a `VideoModel`
        "model": {key: str(value) for key, value in config.items() if key in ENCODER_KEYS or not is_ours},
        "precision": precision,
        "device": device.type,
        "torch": torch.__version__,
        **{name: version for name in LIBRARIES if (version := _installed_version(name))},
    }
    began = time.perf_counter()
    # on a CPU, larger batches are no faster, and the progress bar would stand still meanwhile
    batch_size = 1 if device.type == "cpu" else data.clips_per_batch
    with torch.inference_mode(), autocast(device, precision):
        frame_BCTHW = torch.zeros(1, data.clip.channels, 1, *data.clip.size, device=device)
        feature_size = model.encode(frame_BCTHW).shape[2]  # type: ignore[operator] # a `VideoModel`
    for split, cached in data.use_cached_features(encoder_settings).items():
        cached.feature_size = feature_size
        with file_lock(cached.cache.path), _explain_stops(cached.cache):  # only one process encodes
            _fill_cache(split, cached, data, encode, batch_size=batch_size, verify=verify)
    seconds = time.perf_counter() - began
    log.info(
        "features are cached for %d random views of each training video; change: data.passes=N, data.features=off",
        data.passes,
    )
    model.train()
    return seconds


@contextlib.contextmanager
def _explain_stops(cache: FeatureCache) -> Iterator[None]:
    """Says what is kept after a signal, and what to do about a full disk."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        log.info("interrupted; %d features are kept in %s, and the same command goes on", len(cache), cache.path)
        raise
    except OSError as error:
        if full_disk_error(error) is None:
            raise
        message = f"{system_error_text(error)}; or cache no features: data.features=off"
        raise InputError(message) from error


def _fill_cache(
    split: str,
    cached: CachedClips,
    data: VideoDataModule,
    encode: Callable[[Tensor, Tensor | None], Tensor],
    *,
    batch_size: int,
    verify: bool = True,
) -> None:
    """Encodes what is missing in the feature cache of a split."""
    keys = data.all_keys(split)
    cached.cache.close()  # reopens the file; another process may have added features
    missing = cached.missing_keys(keys, verify=verify)
    log.info(
        "features of %s: %d cached, %d to encode; %s", split, len(keys) - len(missing), len(missing), cached.cache.path
    )
    if not missing:
        return
    start = time.perf_counter()
    for _ in range(_MAX_PASSES):
        _encode(split, cached, missing, data, encode, batch_size=batch_size)
        missing = cached.missing_keys(keys)
        if not missing:
            log.info("encoded in %.1f s", time.perf_counter() - start)
            return
    raise InputError(
        f"{len(missing)} of {len(keys)} features of {split} were written to {cached.cache.path}, but cannot be read "
        "from there: the disk is damaged, or another program changes the file. Remove the file, or cache no features: "
        "data.features=off"
    )


def _encode(
    split: str,
    cached: CachedClips,
    keys: list,
    data: VideoDataModule,
    encode: Callable[[Tensor, Tensor | None], Tensor],
    *,
    batch_size: int,
) -> None:
    bar = Bar(f"encoding {split}", total=len(keys), unit="videos")
    with cached.cache.writer() as write, bar:
        for batch_keys, batch in cached.batches(keys, batch_size=batch_size, num_workers=data.num_workers_alone):
            if batch_keys:
                features_BTF = encode(batch["clips"], batch["lengths"])
                for cache_key, sample in cached.entries(batch_keys, batch, features_BTF):
                    write(cache_key, sample)
            bar.advance(len(batch_keys) + len(batch["failed"]))


def _installed_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def weights_fingerprint(module: nn.Module) -> str:
    """SHA-256 of all weights and buffers, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
