"""`stvid encode`: computes the features of a frozen encoder that training would compute first, also in parts."""

from __future__ import annotations

import argparse
import random

import numpy as np
import torch
from hydra.utils import instantiate

from stvid.commands.part_options import find_parts, part_text
from stvid.data.cached_clips import CachedClips
from stvid.data.datamodule import VideoDataModule
from stvid.data.feature_filling import feature_folder
from stvid.data.loading import probe_cache
from stvid.data.parts import Part, Parts, digest_rows
from stvid.device import default_device, resolve_precision, set_up_cpu
from stvid.errors import InputError
from stvid.files import file_lock
from stvid.preprocess import Preprocess
from stvid.run.accelerator import check_accelerator
from stvid.run.config import compose_config
from stvid.run.config_errors import hydra_errors_as_input_errors
from stvid.run.config_tree import to_plain
from stvid.run.first_model import build_or_resume_model
from stvid.terminal import show, visible
from stvid.training.feature_encoding import FeatureEncoder

BATCH_SIZE = 8  # on a GPU, with data.batch_size=auto


def run(options: argparse.Namespace) -> None:
    with hydra_errors_as_input_errors():
        config = compose_config(options.overrides, needs_data=True)
    check_accelerator(config.trainer.accelerator)
    seed_all(config.seed)
    with hydra_errors_as_input_errors():
        data = instantiate(config.data.datamodule, _convert_="all")
        data.setup()
    settings = to_plain(config)
    names = list(data.manifest.class_names)
    model, _ = build_or_resume_model(None, {**settings, "class_names": names}, data.clip, num_classes=len(names))
    if not (model.supports_feature_cache and model.backbone_is_frozen):
        raise InputError(
            f"{settings['model']['_target_']} has no frozen encoder, so there are no features to keep. Choose "
            "model=cnn_lstm model.freeze=all, or train without stvid encode"
        )
    device = torch.device("cpu") if config.trainer.accelerator == "cpu" else default_device()
    set_up_cpu(device.type)
    if not isinstance(data.batch_size, int):
        data.batch_size = BATCH_SIZE
    encoder = FeatureEncoder(
        data,
        model,
        Preprocess(clip=data.clip),
        precision=resolve_precision(config.trainer.precision, config.trainer.accelerator),
        device=device,
        config=settings["model"],
    )
    folder = feature_folder(probe_cache(data.manifest))
    caches = data.feature_caches(encoder.settings, folder=folder)
    # each encoder, device and precision has a folder of parts of its own: several may be computed at the same time
    identity = digest_rows(cached.cache.path.name for cached in caches.values())
    parts = find_parts(options, data.manifest, output=folder.with_name(f"{folder.name}.{identity}"))
    if parts is not None and options.part is not None:
        _encode_part(parts, options.part, data, encoder, caches)
        show(part_text(options))
        return
    if parts is not None:
        _merge(parts, caches)
    encoder.fill(caches)
    if parts is not None:
        parts.remove()
    show(f"training with the same words reads the features in {visible(folder)}")


def seed_all(seed: int) -> None:
    """As training does: the weights of an encoder that is not pretrained depend on it."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _encode_part(
    parts: Parts, part: Part, data: VideoDataModule, encoder: FeatureEncoder, caches: dict[str, CachedClips]
) -> None:
    """Fills caches of this part's own, which no other machine writes: not every network has locks that work."""
    parts.claim(part)
    mine = set(part.of(item.path for item in data.manifest.items))
    own = data.feature_caches(encoder.settings, folder=parts.file(part, ""))
    keys = {
        split: [
            key
            for key in cached.missing_keys(data.all_keys(split), verify=False)
            if cached.clips.items[key.index].path in mine
        ]
        for split, cached in caches.items()
    }
    encoder.fill(own, keys=keys)
    parts.write(part, None)


def _merge(parts: Parts, caches: dict[str, CachedClips]) -> None:
    """Moves the caches of all parts to where training looks for them."""
    parts.read()
    for cached in caches.values():
        with file_lock(cached.cache.path):
            cached.cache.adopt(sorted(parts.folder.glob(f"*-of-*/{cached.cache.path.name}")))
