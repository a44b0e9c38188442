"""The data set that a config names. Tables and folders are read, and mistakes told, before torch is imported."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from hydra.utils import instantiate
from omegaconf import DictConfig

from stvid.clip import ClipSpec
from stvid.data.manifest import Manifest, check_flip_pairs, validate
from stvid.data.synthetic.root import check_root
from stvid.exits import logs_printed_with_error
from stvid.run.config import compose_config
from stvid.run.config_errors import hydra_errors_as_input_errors
from stvid.run.config_tree import to_plain

if TYPE_CHECKING:
    from stvid.data.datamodule import VideoDataModule

READ_BY = ("stvid.data.layouts.", "stvid.data.manifest.")
ACTIONS = "stvid.data.synthetic.actions.actions"


class _Checked(NamedTuple):
    """A data set that `check_training_data` has read: its settings, and what was logged."""

    settings: dict
    manifest: Manifest
    lines: list[logging.LogRecord]


_checked: _Checked | None = None  # the last one, until it is trained on


def check_training_data(config: DictConfig) -> None:
    """Raises InputError if the data set cannot be found, or cannot be used for training (see `validate`).

    Lines for the log are printed only with an error: training logs them when it reads the data set.
    """
    global _checked
    _checked = None
    with logs_printed_with_error() as lines:
        manifest = read_manifest_early(config)
        if manifest is not None:
            checked = _Checked(to_plain(config.data.datamodule.manifest), manifest, list(lines))
            allowed = {key: config.data[key] for key in ("allow_leaks", "allow_similar_classes")}
            validate(manifest, **allowed)
            if config.augment["_target_"].startswith("stvid."):
                check_flip_pairs(to_plain(config.augment)["flip_pairs"], manifest.class_names)
            _checked = checked


def load_training_data(config: DictConfig) -> VideoDataModule:
    """The data module of a config, set up: its videos are probed.

    If `check_training_data` has just read the same data set, it is not read again, but what was logged is logged now.

    Raises:
        InputError: see `VideoDataModule`; too many videos cannot be read.
    """
    global _checked
    checked, _checked = _checked, None
    node = config.data.datamodule
    if checked is not None and checked.settings == to_plain(node.manifest):
        manifest = checked.manifest
        for line in checked.lines:
            logging.getLogger(line.name).log(line.levelno, "%s", line.getMessage())
    else:
        manifest = instantiate(node.manifest, _convert_="all")
    make_data = instantiate(node, manifest=None, _convert_="all", _partial_=True)  # Hydra would copy a manifest
    data = make_data(manifest=manifest)
    data.setup()
    return data


def read_manifest_early(config: DictConfig) -> Manifest | None:
    """The data set, if reading it needs no torch. None: its videos must be rendered, or its code is the user's own.

    Raises:
        InputError: it cannot be read, or its videos must be rendered into a folder that holds others.
    """
    node = config.data.datamodule.manifest
    target = str(node.get("_target_"))
    if target == ACTIONS:
        check_root(Path(node.root).expanduser().absolute())
    return instantiate(node, _convert_="all") if target.startswith(READ_BY) else None


def compose_data_set(
    overrides: Sequence[str], manifest: Manifest | None = None
) -> tuple[Manifest, ClipSpec, int, dict]:
    """The data set of `python train.py OVERRIDES`.

    Args:
        overrides: as a user types them.
        manifest: the result of `read_manifest_early`, so that the videos are not searched again.

    Returns:
        The manifest, the clip geometry, the number of worker processes (`auto`: one per core, at least 1), and
        the limits for probing: `timeout` in seconds and `max_pixels`.
    """
    from stvid.data.loading import resolve_workers  # imports torch, which no mistake in the overrides waits for
    from stvid.device import num_cores

    with hydra_errors_as_input_errors():
        config = compose_config(overrides, needs_data=True)
        if manifest is None:
            manifest = instantiate(config.data.datamodule.manifest, _convert_="all")
        changes = {"num_frames": None} if config.data.whole_video else {}
        clip = instantiate(config.clip, _convert_="all", **changes)
    workers = config.data.num_workers
    workers = num_cores() if workers == "auto" else max(resolve_workers(workers), 1)
    limits = {"timeout": config.data.probe_timeout, "max_pixels": config.data.max_pixels}
    return manifest, clip, workers, limits
