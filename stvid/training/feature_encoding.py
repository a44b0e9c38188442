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
from stvid.files import file_lock
from stvid.preprocess import encode_clips
from stvid.progress import Bar

log = logging.getLogger(__name__)
ENCODER_KEYS = ("_target_", "encoder", "image_size")  # on these keys of our models the features depend
LIBRARIES = ("timm", "efficientnet-lite-pytorch")  # of encoders, beside torchvision


def store_features(data, task: nn.Module, *, precision: str, device: torch.device, config: Mapping) -> None:
    """Has the data module serve features instead of clips, if its `features` is `auto` and the encoder is frozen.

    What the stores do not have yet is computed here, in the run's own precision.

    Args:
        data: a `VideoDataModule`, set up.
        task: with `model` (a `VideoModel`) and `preprocess`.
        precision: as `resolve_precision` gives it.
        device: where to compute.
        config: the model's, as plain data; with the weights, it tells one encoder from another.

    Raises:
        InputError: clips are to be cut, which features cannot be.
    """
    if data.features == "off" or not (task.model.supports_feature_cache and task.model.backbone_is_frozen):
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
            return encode_clips(model, preprocess, clips_BTCHW.to(device), lengths).cpu()

    is_ours = str(config["_target_"]).startswith("stvid.")
    facts = {
        "encoder": weights_fingerprint(model.backbone),
        "model": {key: str(value) for key, value in config.items() if key in ENCODER_KEYS or not is_ours},
        "precision": precision,
        "device": device.type,
        "torch": torch.__version__,
        **{name: version for name in LIBRARIES if (version := _version(name))},
    }
    for name, stored in data.use_features(facts).items():
        with file_lock(stored.store.path):  # of several processes, one encodes
            _fill(name, stored, data, encode)
    log.info("random views of each training video: %d; data.passes=N keeps N, data.features=off none", data.passes)
    model.train()


def _fill(name: str, stored, data, encode: Callable[[Tensor, Tensor | None], Tensor]) -> None:
    draws = data.draws(name)
    stored.store.close()  # another process may have put more into it
    missing = stored.missing(draws)
    log.info(
        "features of %s: %d stored, %d to encode; %s", name, len(draws) - len(missing), len(missing), stored.store.path
    )
    began = time.perf_counter()
    while missing:  # once, unless another run has replaced the file meanwhile
        _encode(name, stored, missing, data, encode)
        missing = stored.missing(draws)
        if not missing:
            log.info("encoded in %.1f s", time.perf_counter() - began)


def _encode(name: str, stored, draws: list, data, encode: Callable[[Tensor, Tensor | None], Tensor]) -> None:
    bar = Bar(f"encoding {name}", total=len(draws), unit="videos")
    with stored.store.adding() as add, bar:
        for part, batch in stored.batches(draws, batch_size=data.batch_size, num_workers=data.num_workers_alone):
            if part:
                features_BTF = encode(batch["clips"], batch["lengths"])
                for key, content in stored.encoded(part, batch, features_BTF):
                    add(key, content)
            bar.advance(len(part))


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
