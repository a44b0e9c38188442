"""Checks of a composed config that need no torch: a mistake is told at once, and all mistakes together."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from stvid.errors import InputError, nearest, raise_mistakes
from stvid.run.parameters import CHOICES, parameter_types, ranges, type_fits

log = logging.getLogger(__name__)
FOLDERS = ("data.root", "data.splits")
FILES = ("data.path", "data.group_csv")
WEIGHTS = ("model.weights", "model.inflate")
TARGETED = (  # sections that name a class or function
    *("model", "optimizer", "loss", "mixing", "augment", "clip", "trainer", "logger"),
    *("data.datamodule", "data.datamodule.manifest"),
)


def check_config(config: DictConfig, *, needs_data: bool = False, is_stored: bool = False) -> None:
    """Raises InputError for all mistakes in a config that its own text shows.

    They are: a missing value, a key under `data` without effect, a section without its class, a value of another type
    or out of its range, or a missing package.

    Args:
        config: composed.
        needs_data: the files and folders that it names must exist too.
        is_stored: it is that of a run, without the references that tell which keys under `data` have an effect.
    """
    missing = [f"data.{key}" for key in config.data if OmegaConf.is_missing(config.data, key)]
    mistakes = {key: f"{key} must be given: {key}=VALUE" for key in missing}
    if missing:
        config = config.copy()
        for key in missing:
            OmegaConf.update(config, key, "missing")
    paths = _paths(config) if needs_data else ()
    unknown = () if is_stored else _data_keys(config.data)
    found = (*unknown, *_targets(config), *_types(config), *_values(config), *paths)
    for key, message in found:
        mistakes.setdefault(key, message)
    if not any(key.startswith("clip.") for key in mistakes) and (message := _clip(config.clip)):
        mistakes["clip"] = message
    raise_mistakes(list(mistakes.values()))
    if (
        not is_stored
        and config.model.get("freeze")
        and not (config.model.get("weights") or config.model.get("inflate"))
    ):
        log.warning(
            "model.freeze=%s without model.weights: this freezes randomly initialised layers", config.model.freeze
        )


def targets(node: object, place: str = "") -> Iterator[tuple[str, dict]]:
    """Every section of a config with a `_target_`, after its dotted place."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield place, node
        for key, child in node.items():
            yield from targets(child, f"{place}.{key}".strip("."))


def _data_keys(data: DictConfig) -> Iterator[tuple[str, str]]:
    """Keys under `data` (added with `+`) that the data module does not get."""
    references = str(OmegaConf.to_container(data.datamodule, resolve=False))
    known = [key for key in map(str, data) if f"${{data.{key}}}" in references]
    for key in map(str, data):
        if key != "datamodule" and key not in known:
            yield f"data.{key}", f"unknown config key data.{key}{nearest(key, known)}"


def _targets(config: DictConfig) -> Iterator[tuple[str, str]]:
    """Sections whose `_target_` was deleted, or is no text."""
    for section in TARGETED:
        node = OmegaConf.select(config, section)
        if OmegaConf.is_dict(node) and node and not isinstance(target := node.get("_target_"), str):
            shown = "null" if target is None else target
            yield f"{section}._target_", f"{section}._target_ (={shown}) must be the dotted name of a class or function"


def _types(config: DictConfig) -> Iterator[tuple[str, str]]:
    """Values that do not fit the annotation of their parameter, lists and dicts excepted; packages that are missing.

    A message names the key that a value comes from.
    """
    unresolved = dict(targets(OmegaConf.to_container(config, resolve=False)))
    for place, node in targets(OmegaConf.to_container(config, resolve=True)):
        if not isinstance(target := node["_target_"], str):
            continue
        types = parameter_types(target)
        for key, value in node.items():
            is_argument = not str(key).startswith(("_", "datamodule"))
            if types and is_argument and key not in types and "**" not in types:
                yield f"{place}.{key}", f"unknown config key {place}.{key}{nearest(key, types)}"
            if key in types and not isinstance(value, dict | list) and not type_fits(value, types[key]):
                source = re.fullmatch(r"\$\{([\w.]+)\}", str(unresolved.get(place, {}).get(key)))
                name = source[1] if source else f"{place}.{key}"
                yield name, f"{name} (={value!r}) must be {types[key]}"
        if target.startswith("timm.") and importlib.util.find_spec("timm") is None:
            yield place, f"{place} (={target}) needs timm: pip install 'stvid[timm]'"


def _values(config: DictConfig) -> Iterator[tuple[str, str]]:
    """Values that are out of the range, or not among the choices, that `--help` shows."""
    if not isinstance(config.seed, int) or isinstance(config.seed, bool) or not 0 <= config.seed < 2**32:
        yield "seed", f"seed (={config.seed!r}) must be a whole number from 0 to 4294967295"
    for key, choices in CHOICES.items():
        if not _is_checked(config, key):
            continue
        value = OmegaConf.select(config, key)
        if value not in choices:
            names = ", ".join(dict.fromkeys("null" if choice is None else str(choice) for choice in choices))
            yield key, f"{key} (={value}) must be one of {names}"
    for key, allowed in ranges().items():
        if not _is_checked(config, key):
            continue
        node = OmegaConf.select(config, key)
        value = OmegaConf.to_container(node) if OmegaConf.is_config(node) else node
        if not allowed.allows(value):
            kind = "a whole number, " if allowed.whole and not isinstance(value, int | None) else ""
            yield key, f"{key} (={'null' if value is None else value}) must be {kind}{allowed.words}"


def _is_checked(config: DictConfig, key: str) -> bool:
    """Whether the config has the key, and its section is not for a class of the user's own."""
    target = OmegaConf.select(config, f"{key.partition('.')[0]}._target_")
    return _has_key(config, key) and str(target or "stvid.").startswith(("stvid.", "pytorch_lightning."))


def _has_key(config: DictConfig, key: str) -> bool:
    place, _, name = key.rpartition(".")
    section = OmegaConf.select(config, place) if place else config
    return OmegaConf.is_dict(section) and name in set(section)  # `in` leaves out missing values


def _clip(clip: DictConfig) -> str | None:
    try:
        instantiate(clip, _convert_="all")
    except Exception as error:
        return str(error.__cause__) if isinstance(error.__cause__, InputError) else None  # others: when it is built
    return None


def _paths(config: DictConfig) -> Iterator[tuple[str, str]]:
    """Files and folders that do not exist. The built-in data set makes its own folder."""
    is_read = str(config.data.datamodule.manifest.get("_target_")).startswith(
        ("stvid.data.layouts.", "stvid.data.manifest.")
    )
    for key in (*(FOLDERS + FILES if is_read else ()), *WEIGHTS):
        if not _has_key(config, key):
            continue
        value = OmegaConf.select(config, key)
        if not isinstance(value, str) or value == "missing":
            continue
        path = Path(value).expanduser()
        if key in WEIGHTS:
            if not path.exists() and (os.sep in value or "/" in value or path.suffix):
                yield key, f"{key} (={value}): there is no such file"
        elif not path.exists():
            yield key, f"{key} {path.absolute()} does not exist"
        elif key in FOLDERS and not path.is_dir():
            yield key, f"{key} {path.absolute()} is not a folder"
        elif key in FILES and path.is_dir():
            yield key, f"{key} {path.absolute()} is a folder; name the CSV table"
