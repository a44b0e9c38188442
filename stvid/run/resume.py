"""Resuming a run: its stored config, and the overrides allowed with `resume=RUN`. Imports no torch."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from stvid.errors import InputError, nearest
from stvid.run.config_tree import is_in, places, references, to_plain

log = logging.getLogger("stvid")
RESUME_KEYS = ("resume", "allow_changes", "trust")
ALLOWED_OVERRIDES = (  # the result of a run does not depend on these
    "data.num_workers",
    "data.probe_timeout",
    "data.max_pixels",
    "data.backend",
    "save_every",
    "requeue",
    "report",
    "headspace",
    "trainer.log_every_n_steps",
)
FIXED_KEYS = (
    "clip",
    "model",
    "optimizer",
    "ema",
    "compile",
    "gradient_checkpointing",
    "find_lr",
)  # resume cannot change them
LOGGER_KEY = "logger"  # the logger of the command line, if it names one, replaces that of the run
MANIFEST_KEY = "data.datamodule.manifest"
UNSAVED_KEYS = ("sweep", "trust")  # in the config of a command line, but not of every run


def resume_config(
    stored: DictConfig, overrides: Sequence[str], new: DictConfig, *, log_changes: bool = True
) -> DictConfig:
    """A run's stored config with the overrides that are allowed with `resume=RUN`.

    Of a logger in the overrides the whole section `logger` is that of the command line.

    Args:
        stored: the run's `config.yaml`, which has no interpolations.
        overrides: all overrides of the command line.
        new: the config that the command line composes for a new run. Its interpolations tell which other places take
            their value from a key.
        log_changes: log every changed value.

    Raises:
        InputError: an override that would change the result, without `allow_changes=true`; another choice of a config
            group; a key that the run does not have.
    """
    given = [override for override in parse_overrides(overrides) if _is_run_key(override)]
    parsed = [override for override in given if not _is_logger(override)]
    changes = [override for override in parsed if override.key_or_group not in ALLOWED_OVERRIDES]
    if changes and not new.allow_changes:
        raise InputError(
            f"resume={new.resume} uses the run's own config, so that the result is that of an uninterrupted run; "
            f"leave out {' '.join(str(override.input_line) for override in changes)}, or insist with allow_changes=true"
        )
    _check_complete(stored, new)
    config = stored.copy()
    OmegaConf.set_struct(config, False)
    for override in parsed:
        old_value = OmegaConf.select(config, override.key_or_group, default=None)
        _apply(config, override, new)
        if log_changes:
            log.info("changed: %s from %s to %s", override.key_or_group, old_value, override.value())
    if len(parsed) < len(given):
        config.logger = OmegaConf.create({"logger": new.get(LOGGER_KEY)}).logger
        if log_changes:
            log.info("changed: logger from %s to %s", stored.get(LOGGER_KEY), config.logger)
    return config


def unchecked_places(overrides: Sequence[str], new: DictConfig) -> list[str]:
    """Places of a run's config that may differ from its checkpoint: the overrides, and keys without effect on a result.

    Args:
        overrides: all overrides of the command line.
        new: see `resume_config`.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    keys = [*ALLOWED_OVERRIDES, *(override.key_or_group for override in parsed if _is_run_key(override))]
    logger = [LOGGER_KEY] if any(map(_is_logger, parsed)) else []
    return [*RESUME_KEYS, *logger, *(place for key in keys for place in _places(key, new))]


def _check_complete(stored: DictConfig, new: DictConfig) -> None:
    """Raises InputError if a run's config lacks a key that every run of this version has."""
    for key in map(str, new):
        if (
            OmegaConf.is_dict(new[key])
            and key in stored
            and not (OmegaConf.is_dict(stored[key]) or (key == LOGGER_KEY and stored[key] is None))
        ):
            raise InputError(f"the run's config is damaged or was changed: {key} has no keys")
    if "data" in stored and not OmegaConf.is_dict(stored.data.get("datamodule")):
        raise InputError("the run's config is damaged or was changed: data.datamodule has no keys")
    missing = [key for key in map(str, new) if key not in stored and key not in UNSAVED_KEYS]
    if missing:
        raise InputError(
            f"an older version of stvid, without {', '.join(missing)}, started the run; it can be evaluated, but not "
            "resumed"
        )


def parse_overrides(overrides: Sequence[str]) -> list[Override]:
    """The overrides of a command line, parsed by Hydra."""
    return OverridesParser.create().parse_overrides(list(overrides))


def is_data_root(override: Override) -> bool:
    """Whether an override names the folder of the videos; beside `resume` it says where they are now."""
    return override.key_or_group == "data.root"


def _is_logger(override: Override) -> bool:
    return override.key_or_group.split(".")[0] == LOGGER_KEY


def _is_run_key(override: Override) -> bool:
    """Whether an override is of the run's config: not of Hydra's, and not one that only says how to resume."""
    return (
        not is_data_root(override)
        and override.key_or_group not in RESUME_KEYS
        and not override.key_or_group.startswith("hydra")
    )


def _apply(config: DictConfig, override: Override, new: DictConfig) -> None:
    """Sets the value of an override everywhere it belongs.

    Raises:
        InputError: it would replace a config group, the videos or a value that the checkpoint fixes; an unknown key.
    """
    key, value = override.key_or_group, override.value()
    old_value, changed = OmegaConf.select(config, key, default=None), _places(key, new)
    replaces_group = OmegaConf.is_dict(old_value) and value is not None
    is_choice = override.is_delete() or override.is_sweep_override() or "/" in key or replaces_group
    changes_videos = any(place.startswith(MANIFEST_KEY) for place in changed)
    if is_choice or changes_videos or key.split(".")[0] in FIXED_KEYS:
        raise InputError(
            f"{override.input_line}: a resumed run cannot change {key}. Start a new run instead; model.weights=RUN "
            "starts it from these weights"
        )
    keys = [place for place, _ in places(to_plain(config, resolve=False)) if not place.endswith("]")]
    if old_value is None and not override.is_add() and key not in keys:
        raise InputError(f"{override.input_line}: the run has no key {key}{nearest(key, keys)}")
    for place in changed:
        OmegaConf.update(config, place, value)


def _places(key: str, new: DictConfig) -> list[str]:
    """The places of a value: its key, and every place that refers to the key or to a section around it."""
    found = references(to_plain(new, resolve=False)).items()
    return [key, *(place + key.removeprefix(source) for place, source in found if is_in(key, source))]
