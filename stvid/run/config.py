"""The config of a training run, composed from the words of a command line and checked."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from stvid.errors import raise_mistakes
from stvid.run.config_check import check_config
from stvid.run.config_errors import (
    config_message,
    several_values_message,
    unknown_choice_message,
    unknown_key_message,
)
from stvid.run.config_help import SHARED, choices_of, config_groups
from stvid.run.config_tree import places, to_plain
from stvid.run.folder import project_root, run_dir
from stvid.run.overrides import EMPTY_KEYS, split_override, to_overrides


def compose_config(overrides: Sequence[str], *, needs_data: bool = False) -> DictConfig:
    """The config of `python train.py OVERRIDES`, checked.

    Args:
        overrides: as a user types them, see `to_overrides`.
        needs_data: the data set must exist.

    Raises:
        InputError: all mistakes in the overrides, or in the values of the config.
    """
    config = compose_unchecked(to_overrides(overrides))
    check_config(config, needs_data=needs_data)
    return config


def compose_unchecked(overrides: Sequence[str]) -> DictConfig:
    """The config; raises InputError for all overrides that are wrong."""
    mistakes = _wrong_values(overrides)
    if mistakes:
        others = [word for word in overrides if word not in mistakes]
        raise_mistakes([*mistakes.values(), *_wrong_overrides(others)])
    try:
        config = _read_configs(tuple(overrides)).copy()
    except (HydraException, OmegaConfBaseException) as error:
        raise_mistakes(_wrong_overrides(overrides) or [config_message(error)])
        raise
    return drop_keys_of_replaced_model(config, overrides)


@functools.lru_cache(maxsize=4)  # a command checks its config before it imports torch, and uses it afterwards
def _read_configs(overrides: tuple[str, ...]) -> DictConfig:
    with initialize_config_dir(str(project_root() / "configs"), version_base="1.3"):
        return compose("train", overrides=list(overrides))


def _wrong_values(overrides: Sequence[str]) -> dict[str, str]:
    """Override -> message, for empty values, and for choices of a group that Hydra takes and stvid does not have."""
    mistakes = {}
    for word in overrides:
        key, value = split_override(word) or ("", "none")
        if not value.strip("\"' ") and key not in EMPTY_KEYS:
            mistakes[word] = f"{key}= has no value; leave it out, or give one: {key}=VALUE"
        elif key in config_groups() and (value == SHARED.get(key) or (value == "null" and key != "experiment")):
            mistakes[word] = unknown_choice_message(key, value)
        elif (group := key.partition("@")[0]) in config_groups() and _is_number(word):
            mistakes[word] = unknown_choice_message(group, value)
        elif re.fullmatch(r"hydra(/\w+)*", group) and _is_number(word):
            mistakes[word] = f"{key}={value}: the choices of {group} are names"
    return mistakes


def _is_number(word: str) -> bool:
    """Whether Hydra reads the value of an override as a number or a truth value."""
    try:
        return isinstance(OverridesParser.create().parse_override(word).value(), int | float)
    except HydraException:
        return False


def _wrong_overrides(overrides: Sequence[str]) -> list[str]:
    """A message for each override that is wrong alone: no override, an unknown choice, or an unknown key."""
    messages, chosen, keys = [], [], []
    for word in overrides:
        try:
            override = OverridesParser.create().parse_override(word)
        except HydraException as error:
            messages.append(config_message(error))
            continue
        key, choice = override.key_or_group, str(override.value())
        if key not in config_groups():
            keys.append(override)
        elif override.is_sweep_override():
            messages.append(several_values_message(key, word.partition("=")[2]))
        elif override.is_delete() or choice in choices_of(key) or choice == "None":
            chosen.append(word)
        else:
            messages.append(unknown_choice_message(key, choice))
    known = dict(places(to_plain(_read_configs(tuple(chosen)), resolve=False)))
    for override in keys:
        key = override.key_or_group
        may_be_new = override.is_add() or override.is_force_add() or "/" in key or key.startswith("hydra.")
        if override.is_sweep_override():
            messages.append(several_values_message(key, str(override.input_line).partition("=")[2]))
        elif key not in known and not may_be_new:
            messages.append(unknown_key_message(key))
    return messages


def first_values(overrides: Sequence[str]) -> list[str]:
    """The overrides of a sweep with the first of several values, or the middle of an interval.

    Raises:
        InputError: choices of a group that do not exist.
    """
    first, messages = [], []
    for word in overrides:
        override = OverridesParser.create().parse_override(word)
        if not override.is_sweep_override():
            first.append(word)
            continue
        key, sweep, is_group = override.get_key_element(), override.value(), override.key_or_group in config_groups()
        if isinstance(sweep, Glob):
            values = sweep.filter(choices_of(override.key_or_group))
        elif isinstance(sweep, IntervalSweep):
            assert sweep.start is not None  # Hydra's grammar demands both
            assert sweep.end is not None
            middle = (sweep.start + sweep.end) / 2
            values = [str(int(middle) if isinstance(sweep.start, int) else middle)]
        else:
            values = list(override.sweep_string_iterator())
            wrong = [value for value in values if is_group and value not in choices_of(override.key_or_group)]
            messages += [unknown_choice_message(override.key_or_group, value) for value in wrong]
        first += [f"{key}={value}" for value in values[:1]]
    raise_mistakes(messages)
    return first


def drop_keys_of_replaced_model(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """If an override sets `model._target_`, only model keys that are overrides too remain.

    The other keys are from the chosen file of configs/model, and belong to the model that it names.

    Args:
        config: composed with the overrides.
        overrides: `key=value` of the command line.
    """
    keys = {override.lstrip("+").partition("=")[0] for override in overrides}
    if "model._target_" in keys:
        given = {key.split(".")[1] for key in keys if key.startswith("model.")}
        config.model = OmegaConf.masked_copy(config.model, [key for key in config.model if key in given])
    return config


OmegaConf.register_new_resolver("run_dir", run_dir, replace=True)
