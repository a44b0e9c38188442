"""Checks of a composed config that need no torch: a mistake is told at once, and all mistakes together."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from stvid.data.layouts.recognition import VIDEO
from stvid.errors import InputError, nearest, raise_mistakes
from stvid.run.accelerator import NO_GPU_TO_AUGMENT
from stvid.run.config_help import choice_content, choices_of, config_groups, own_entries
from stvid.run.config_tree import is_in, places, references, targets, to_plain
from stvid.run.folder import project_root
from stvid.run.parameters import CHOICES, RANGES, SWITCHES, mistake, parameter_types, type_fits

log = logging.getLogger(__name__)
FOLDERS = ("data.root", "data.splits")
FILES = ("data.path", "data.group_csv")
SHARDS = "stvid.data.layouts.shards.shards"  # its root may be a URL
WEIGHTS = ("model.weights", "model.inflate")


def check_config(config: DictConfig, *, needs_data: bool = False, is_stored: bool = False) -> None:
    """Raises InputError for all mistakes in a config that its own text shows.

    They are: a missing section or value, a section without its class, a key under `data` without effect, a value of
    another type or out of its range, or a missing package.

    Args:
        config: composed.
        needs_data: the files and folders that it names must exist too.
        is_stored: it is that of a run, without the references that tell which keys under `data` have an effect.
    """
    unresolved = to_plain(config, resolve=False)
    raise_mistakes(list(_sections(unresolved)))  # the other checks read them
    # not those in a list: a class may have this name
    missing = [place for place, value in places(unresolved) if value == "???" and not place.endswith("]")]
    mistakes = {key: f"{key} must be given: {key}=VALUE" for key in missing}
    if missing:
        config = config.copy()
        for key in missing:
            OmegaConf.update(config, key, "missing")
    plain = to_plain(config)
    values = dict(places(plain))
    paths = _paths(values) if needs_data else ()
    unknown = () if is_stored else _data_keys(unresolved["data"])
    for key, message in (*unknown, *_types(plain, references(unresolved)), *_values(values), *paths):
        mistakes.setdefault(key, message)
    if not any(is_in(key, "clip") for key in mistakes) and (message := _clip(config.clip)):
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


@functools.cache
def known_sections() -> dict[str, bool]:
    """Dotted place of every section that all choices of its group have -> whether each names a `_target_` or is empty.

    `${clip}` is a section too.
    """
    known: dict[str, bool] = {}
    for group in config_groups():
        contents = [_sections_of_choice(group, choice) for choice in choices_of(group)]
        for place in contents[0]:
            if all(place in content for content in contents):
                known[place] = all(content[place] for content in contents)
    return known


def _sections_of_choice(group: str, choice: str) -> dict[str, bool]:
    content = choice_content(group, choice)
    sections = {at: not node or "_target_" in node for at, node in places(content, group) if isinstance(node, dict)}
    return sections | {at: False for at, key in references(content, group).items() if key in config_groups()}


def _sections(config: Mapping) -> Iterator[str]:
    """Sections that are missing, or have another value in their place; keys of train.yaml that are missing."""
    keys = own_entries(project_root() / "configs" / "train.yaml")
    groups = [group for group in config_groups() if group not in ("experiment", "sweep")]  # a stored config has neither
    for key in (*keys, *groups):
        if key not in config:
            yield f"{key} is missing, and every run needs it: leave out ~{key}"
    values = dict(places(config))
    for place, has_target in known_sections().items():
        around, _, name = place.rpartition(".")
        if not isinstance(values.get(around), Mapping) if around else name not in config:
            continue  # told already
        value = values.get(place)
        if place not in values:
            yield f"{place} is missing, and every run needs it: leave out ~{place}"
        elif not isinstance(value, Mapping):
            if not (isinstance(value, str) and value.startswith(("${", "???"))):
                yield f"{place} (={_shown(value)}) must be a section with keys of its own: {place}.KEY=VALUE"
        elif has_target and value and "_target_" not in value:
            yield f"{place}._target_ is missing, the class or function that {place} is for"
    logger = config.get("logger")  # logger=none is empty
    if isinstance(logger, Mapping) and logger and "_target_" not in logger:
        yield "logger._target_ is missing, the class or function that logger is for"
    for place, node in targets(config):
        if not isinstance(target := node["_target_"], str) or not target:
            yield f"{place}._target_ (={_shown(target)}) must be the dotted name of a class or function"


def _shown(value: object) -> str:
    return "null" if value is None else str(value)


def _data_keys(data: Mapping) -> Iterator[tuple[str, str]]:
    """Keys under `data` (added with `+`) that the data module does not get."""
    known = [key for key in map(str, data) if f"${{data.{key}}}" in str(data["datamodule"])]
    for key in map(str, data):
        if key != "datamodule" and key not in known:
            yield f"data.{key}", f"unknown config key data.{key}{nearest(key, known)}"


def _types(config: Mapping, sources: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Values that do not fit the annotation of their parameter, lists and dicts excepted; packages that are missing.

    `sources`: place -> the key that its value comes from, which a message names.
    """
    for place, node in targets(config):
        target = node["_target_"]
        types = parameter_types(target)
        for key, value in node.items():
            is_argument = not str(key).startswith(("_", "datamodule"))
            if types and is_argument and key not in types and "**" not in types:
                yield f"{place}.{key}", f"unknown config key {place}.{key}{nearest(key, types)}"
            if key in types and not isinstance(value, dict | list) and not type_fits(value, types[key]):
                name = sources.get(f"{place}.{key}", f"{place}.{key}")
                yield name, f"{name} (={value!r}) must be {types[key].replace('Sequence', 'list')}"
        if target.startswith("timm.") and importlib.util.find_spec("timm") is None:
            yield place, f"{place} (={target}) needs timm: pip install 'stvid[timm]'"


def _values(values: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Values that are out of the range, or not among the choices, that `--help` shows."""
    for key in (*CHOICES, *SWITCHES, *RANGES):
        target = values.get(f"{key.partition('.')[0]}._target_", "stvid.")  # of another class, the keys are its own
        is_checked = str(target).startswith(("stvid.", "pytorch_lightning."))
        if key in values and is_checked and (message := mistake(key, values[key])):
            yield key, message
    if values.get("augment.device") == "gpu" and values.get("trainer.accelerator") == "cpu":
        yield "augment.device", NO_GPU_TO_AUGMENT
    if values.get("refit") and values.get("optimizer.schedule") == "plateau":
        yield "refit", "refit=true trains without val, and optimizer.schedule=plateau needs it: choose another schedule"
    if not isinstance(values["trust"], list | str):
        yield "trust", f"trust (={_shown(values['trust'])}) must be a list of packages or modules: trust=[my_package]"


def _clip(clip: DictConfig) -> str | None:
    try:
        instantiate(clip, _convert_="all")
    except InstantiationException as error:  # Hydra's, around any error of the class
        return str(error.__cause__) if isinstance(error.__cause__, InputError) else None  # others: when it is built
    return None


def _paths(values: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Files and folders that do not exist. The built-in data set makes its own folder."""
    target = str(values.get("data.datamodule.manifest._target_"))
    is_read = target.startswith(("stvid.data.layouts.", "stvid.data.manifest."))
    for key in (*(FOLDERS + FILES if is_read else ()), *WEIGHTS):
        value = values.get(key)
        if not isinstance(value, str) or value == "missing":
            continue
        if key == "data.root" and target == SHARDS and "://" in value:
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
        elif key in FILES and VIDEO.fullmatch(path.name):
            yield key, f"{key} {path.absolute()} is a video; name a CSV table, or a folder with a folder for each class"
        elif key == "data.root" and _holds_only_videos(path) and target.endswith(".class_folders.folder"):
            yield (
                key,
                f"data.root {path.absolute()} holds videos, but no class folders. If it is a class itself, name the "
                f"folder above: data.root={path.absolute().parent}",
            )


def _holds_only_videos(folder: Path) -> bool:
    """Whether a folder has videos in it, and no folders."""
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    return any(VIDEO.fullmatch(entry.name) for entry in visible) and not any(entry.is_dir() for entry in visible)
