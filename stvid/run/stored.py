"""`config.yaml` of a run as it is read back: plain data that names no code but that of the shipped configs."""

from __future__ import annotations

import functools
import io
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from stvid.checks import read_file
from stvid.errors import InputError, listing
from stvid.run.config_help import read_yaml
from stvid.run.config_tree import is_in, places, references, to_plain
from stvid.run.folder import project_root
from stvid.run.trust import is_trusted, update_targets

MAX_BYTES = 2**24  # of a config; one with 100,000 class names has a tenth of it
MAX_DEPTH = 50
RESERVED = re.compile(r"_\w+_")  # keys that Hydra reads: `_target_`, `_partial_`, `_args_`, ...
INTERPOLATION = re.compile(r"(?<!\\)(\\\\)*\$\{")  # not escaped
LOGGERS = {  # target -> its choice of `logger`
    "pytorch_lightning.loggers.TensorBoardLogger": "tensorboard",
    "pytorch_lightning.loggers.MLFlowLogger": "mlflow",
    "pytorch_lightning.loggers.WandbLogger": "wandb",
}
LOGGER_NAMES = ("name", "run_name")  # of a folder in the run folder, or what a run is called in the user's account
PLAIN_NAME = re.compile(r"[^\W_](?:[\w .-]{0,99}[\w-])?")
TRAINER = "pytorch_lightning.Trainer"
MISSING = object()
MAX_DEVICES = max(os.cpu_count() or 1, 16)
DIGITS = re.compile(r"\d+", re.ASCII)
Reserved = tuple[str, str, str]  # place, key and value


def read_config(file: Path) -> DictConfig:
    """Reads a run's `config.yaml`, which has no interpolations: nothing in it is looked up anywhere.

    Targets of older versions get their present names.

    Raises:
        InputError: the file cannot be read, is no YAML, has references or interpolations.
    """
    try:
        text = read_file(file, max_bytes=MAX_BYTES).decode("utf-8")
        check_yaml(text)
        loaded = OmegaConf.load(io.StringIO(text))
        if not isinstance(loaded, DictConfig):
            raise ValueError("it is no mapping")
        plain = to_plain(loaded, resolve=False)
        for place, text in places(plain):
            if isinstance(text, str) and INTERPOLATION.search(text):
                raise ValueError(f"{place} is an interpolation (${{...}}), which a run never stores")
        if "_target_" in plain or not all(isinstance(key, str) for key in plain):
            raise ValueError("it is no config of a run")
        return OmegaConf.create(update_targets(plain))
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error).splitlines()[0]
        raise InputError(
            f"{file} is damaged or was changed: {reason}. The run can be evaluated, but not resumed, unless you have "
            "a copy of the file"
        ) from error


def check_yaml(text: str) -> None:
    """Raises ValueError for YAML that takes very long or much memory to build: references, or very deep nesting."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or depth > MAX_DEPTH:
            raise ValueError("it has YAML references (*name), or is nested too deeply")


def check_targets(stored: Mapping, new: Mapping, trust: Sequence[str], *, name: str) -> None:
    """Refuses code that a run's config names, unless the shipped configs name it at the same place.

    Args:
        stored: the run's config, plain data.
        new: the config that the command line composes, plain data; what it names is allowed at the same place.
        trust: modules that may be imported.
        name: of the run, for the message.

    Raises:
        InputError: a `_target_` that is not allowed, or another of Hydra's keys that the shipped configs do not have.
    """
    allowed = known_targets() | set(_reserved(new))
    trusted_places = {
        place for place, key, value in _reserved(stored) if key == "_target_" and is_trusted(value, trust)
    }
    for place, key, value in _reserved(stored):
        if place in trusted_places or (place, key, value) in allowed:
            continue
        if key == "_target_":
            raise InputError(
                f"{name}: {place}._target_ (={value}) of the run is code outside of stvid, or not meant for this key; "
                f"it is imported only from modules that you trust: add trust=[{value.partition('.')[0]}]"
            )
        raise InputError(f"{name}: {place}.{key} (={value}) of the run is not in the shipped configs; delete it")


def check_arguments(stored: Mapping, new: Mapping, trust: Sequence[str], *, name: str) -> None:
    """Refuses arguments of a run's logger and trainer that can name a server, a file, or a folder.

    Args:
        stored: the run's config, plain data, after `check_targets`.
        new: the config that the command line composes, plain data; its values are allowed at the same place.
        trust: modules whose arguments are not checked.
        name: of the run, for the message.

    Raises:
        InputError: an argument that is neither harmless nor the same in the command line.
    """
    allowed = dict(places(new))
    for section in ("logger", "trainer"):
        for place, target, key, value in _arguments(stored.get(section), section):
            if is_trusted(target, trust) or allowed.get(f"{place}.{key}", MISSING) == value:
                continue
            if section == "logger" and not _is_harmless_for_logger(target, key, value):
                group = LOGGERS.get(target, "none")
                raise InputError(
                    f"{name}: {place}.{key} (={value}) of the run can lead to a server or out of its folder. If it is "
                    f"yours, repeat it: logger={group} {place}.{key}=VALUE; else choose a logger, such as logger=none"
                )
            if section == "trainer" and not _is_harmless_for_trainer(target, key, value):
                raise InputError(
                    f"{name}: {place}.{key} (={value}) of the run is not in the shipped configs. If it is yours, "
                    f"repeat it: +{place}.{key}=VALUE allow_changes=true; else delete it from config.yaml"
                )


def _arguments(node: object, place: str) -> Iterator[tuple[str, str, str, object]]:
    """Place, target, name and value of each argument, at any depth."""
    for section, content in places(node, place):
        if isinstance(content, Mapping):
            for key, value in content.items():
                if not RESERVED.fullmatch(str(key)):
                    yield section, str(content.get("_target_")), str(key), value


def _is_harmless_for_logger(target: str, key: str, value: object) -> bool:
    shipped = shipped_arguments("logger").get((target, key), ())
    if isinstance(value, bool | int | float | None) and shipped:
        return True
    is_name = key in LOGGER_NAMES and isinstance(value, str) and PLAIN_NAME.fullmatch(value) is not None
    return value in shipped or (is_name and bool(shipped))


def _is_harmless_for_trainer(target: str, key: str, value: object) -> bool:
    """Numbers and truth values name nothing; texts only where the shipped configs have the key.

    Of processes, no more than this machine can have a use for: Lightning starts as many as `devices` says.
    """
    if key == "devices" and any(len(digits) > 4 or int(digits) > MAX_DEVICES for digits in DIGITS.findall(str(value))):
        return False
    if isinstance(value, bool | int | float | None):
        return True
    if (target, key) not in shipped_arguments("trainer"):
        return False
    if isinstance(value, Mapping):
        return "_target_" in value  # which `check_targets` knows; its arguments are checked on their own
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(entry, int) for entry in value))


@functools.cache
def shipped_arguments(group: str) -> Mapping[tuple[str, str], tuple[object, ...]]:
    """(target, argument) -> its values in the files of a config group, for the targets in them."""
    found: dict[tuple[str, str], tuple[object, ...]] = {}
    for file in sorted((project_root() / "configs" / group).glob("*.yaml")):
        content = read_yaml(file)
        for _, target, key, value in _arguments(content, group):
            target = TRAINER if group == "trainer" and target == "None" else target  # a file that changes another
            found[target, key] = (*found.get((target, key), ()), value)
    return found


def _reserved(node: object, place: str = "") -> Iterator[Reserved]:
    """Hydra's own keys in plain data, at any depth."""
    for section, content in places(node, place):
        if isinstance(content, Mapping):
            for key, value in content.items():
                if isinstance(key, str) and RESERVED.fullmatch(key):
                    yield section, key, str(value)


@functools.cache
def known_targets() -> frozenset[Reserved]:
    """Hydra's own keys in the files of configs/, and at the places that refer to a config group, such as `${clip}`."""
    root = project_root() / "configs"
    known: set[Reserved] = set()
    pairs: list[tuple[str, str]] = []
    for file in sorted(root.rglob("*.yaml")):
        group = file.parent.relative_to(root).as_posix()
        if group.startswith(("hydra", "experiment")):
            continue
        content = read_yaml(file)
        place = "" if group == "." else group
        known |= set(_reserved(content, place))
        pairs += references(content, place).items()
    for place, group in pairs:
        known |= {(place + where.removeprefix(group), key, value) for where, key, value in known if is_in(where, group)}
    return frozenset(known)


def check_same_config(stored: Mapping, record: Mapping, *, ignored: Collection[str], file: Path) -> None:
    """Refuses a `config.yaml` that differs from the config in the run's checkpoint: it was changed since.

    Args:
        stored: the run's config, plain data.
        record: the config in its checkpoint, plain data.
        ignored: places that may differ, with everything below them.
        file: the `config.yaml`, for the message.

    Raises:
        InputError: with all keys that differ, and both values.
    """
    old, new = dict(_leaves(record)), dict(_leaves(stored))
    differ = [
        place
        for place in dict.fromkeys([*old, *new])
        if old.get(place, "(nothing)") != new.get(place, "(nothing)")
        and not any(is_in(place, part) for part in ignored)
    ]
    if differ:
        changes = [f"{place} from {old.get(place, '(nothing)')} to {new.get(place, '(nothing)')}" for place in differ]
        raise InputError(
            f"{file} was changed after the run's last checkpoint: {listing(changes)}. The checkpoint was trained with "
            "the old values: restore them, or name the change in the command with allow_changes=true, where it can be "
            "made"
        )


def _leaves(node: object, place: str = "") -> Iterator[tuple[str, object]]:
    """Dotted places of plain data, and their values; a list is one value."""
    if isinstance(node, Mapping) and node:
        for key, child in node.items():
            yield from _leaves(child, f"{place}.{key}".lstrip("."))
    else:
        yield place, list(node) if isinstance(node, tuple) else node
