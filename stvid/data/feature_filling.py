"""Fills the feature cache: frame features of a frozen encoder, computed once and stored, for training and evaluation.

B clips in a batch   T frames   C channels   H, W height and width   F features of a frame
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from stvid.data.cached_clips import CachedClips
from stvid.data.feature_cache import FeatureCache
from stvid.data.sampler import SampleKey
from stvid.disks import full_disk_error, system_error_text
from stvid.errors import InputError
from stvid.files import file_lock
from stvid.progress import Bar

log = logging.getLogger(__name__)
FEATURES_NAME = ".stvid_features"
# config keys of our models that change the features
ENCODER_KEYS = ("_target_", "encoder", "image_size", "stage", "grid")
LIBRARIES = ("timm", "efficientnet-lite-pytorch")  # with encoders, besides torchvision
_MAX_PASSES = 2  # the second if another run has replaced the file meanwhile
Encode = Callable[[Tensor, Tensor | None], Tensor]  # uint8 clips B x T x C x H x W, lengths B -> B x T x F on the CPU


def feature_folder(probe_file: Path | None) -> Path:
    """The folder of the caches: beside the videos, or in the working directory if that is not writable.

    Args:
        probe_file: see `loading.probe_cache`.
    """
    if probe_file and os.access(probe_file.parent, os.W_OK):
        return probe_file.parent / FEATURES_NAME
    folder = Path.cwd() / FEATURES_NAME
    log.info("features are cached in %s, since the videos' folder is not writable", folder)
    return folder


def encoder_settings(
    backbone: nn.Module, config: Mapping, *, precision: str, device: torch.device, runtime: str | None
) -> dict:
    """Plain data that identifies an encoder and how it computes; part of the name of the cache's file.

    Args:
        backbone: the encoder with its weights.
        config: config of the model, as plain data.
        precision: Lightning's name, from `resolve_precision`.
        device: device of the encoder.
        runtime: from `VideoModel.encoding_runtime`.
    """
    is_ours = str(config["_target_"]).startswith("stvid.")
    return {
        "encoder": weights_fingerprint(backbone),
        "model": {key: str(value) for key, value in config.items() if key in ENCODER_KEYS or not is_ours},
        "precision": precision,
        "device": device.type,
        "torch": torch.__version__,
        **({"runtime": runtime} if runtime else {}),
        **{name: version for name in LIBRARIES if (version := _installed_version(name))},
    }


def fill_cache(
    cached: CachedClips,
    keys: Sequence[SampleKey],
    encode: Encode,
    *,
    name: str,
    batch_size: int,
    num_workers: int,
    verify: bool = True,
    switch: str,
) -> None:
    """Encodes the samples that are missing in a feature cache; one process at a time. After an interruption, the next
    call goes on with what is missing.

    Args:
        cached: the samples.
        keys: those that must be there afterwards.
        encode: the encoder.
        name: of the split, for messages.
        batch_size: clips per call of the encoder; at least one video.
        num_workers: processes that read videos.
        verify: read all stored features and encode damaged ones again; one of several processes is enough.
        switch: the option that does without a cache, for messages.

    Raises:
        InputError: the disk of the cache is full, or what was written to it cannot be read.
    """
    with file_lock(cached.cache.path), explain_stops(cached.cache, switch=switch):
        cached.cache.close()  # reopens the file; another process may have added features
        missing = cached.missing_keys(keys, verify=verify)
        counts = (len(keys) - len(missing), len(missing))
        log.info("features of %s: %d cached, %d to encode; %s", name, *counts, cached.cache.path)
        if not missing:
            return
        start = time.perf_counter()
        for _ in range(_MAX_PASSES):
            _encode_keys(cached, missing, encode, name=name, batch_size=batch_size, num_workers=num_workers)
            missing = cached.missing_keys(keys)
            if not missing:
                log.info("encoded in %.1f s", time.perf_counter() - start)
                return
        raise InputError(
            f"{len(missing)} of {len(keys)} features of {name} were written to {cached.cache.path}, but cannot be read "
            "from there: the disk is damaged, or another program changes the file. Remove the file, or cache no "
            f"features: {switch}"
        )


def _encode_keys(
    cached: CachedClips, keys: Sequence[SampleKey], encode: Encode, *, name: str, batch_size: int, num_workers: int
) -> None:
    bar = Bar(f"encoding {name}", total=len(keys), unit="videos")
    with cached.cache.writer() as write, bar:
        for batch_keys, batch in cached.batches(keys, batch_size=batch_size, num_workers=num_workers):
            if batch_keys:
                features_BTF = encode(batch["clips"], batch["lengths"])
                for cache_key, sample in cached.entries(batch_keys, batch, features_BTF):
                    write(cache_key, sample)
            bar.advance(len(batch_keys) + len(batch["failed"]))


@contextlib.contextmanager
def explain_stops(cache: FeatureCache, *, switch: str) -> Iterator[None]:
    """Says what is kept after a signal, and what to do about a full disk; `switch`: see `fill_cache`."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        log.info("interrupted; %d features are kept in %s, and the same command goes on", len(cache), cache.path)
        raise
    except OSError as error:
        if full_disk_error(error) is None:
            raise
        raise InputError(f"{system_error_text(error)}; or cache no features: {switch}") from error


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
