"""The config of a training run: composed, checked, and errors in it turned into messages for the user."""

from __future__ import annotations

import contextlib
import difflib
import functools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep
from hydra.errors import HydraException, InstantiationException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from stvid.errors import InputError, nearest, raise_mistakes, train_command
from stvid.run.config_check import check_config
from stvid.run.config_help import SHARED, choices_of, config_groups
from stvid.run.folder import RunFolder, project_root
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
        raise_mistakes(_wrong_overrides(overrides) or [_config_message(error)])
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
            mistakes[word] = _unknown_choice_message(key, value)
        elif (group := key.partition("@")[0]) in config_groups() and _is_number(word):
            mistakes[word] = _unknown_choice_message(group, value)
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
            messages.append(_config_message(error))
            continue
        key, choice = override.key_or_group, str(override.value())
        if key not in config_groups():
            keys.append(override)
        elif override.is_sweep_override():
            messages.append(_several_values_message(key, word.partition("=")[2]))
        elif override.is_delete() or choice in choices_of(key) or choice == "None":
            chosen.append(word)
        else:
            messages.append(_unknown_choice_message(key, choice))
    config = _read_configs(tuple(chosen))
    for override in keys:
        key = override.key_or_group
        if override.is_sweep_override():
            messages.append(_several_values_message(key, str(override.input_line).partition("=")[2]))
        elif not (override.is_add() or override.is_force_add() or "/" in key or key.startswith("hydra.")):
            place, _, name = key.rpartition(".")
            section = OmegaConf.select(config, place, throw_on_missing=False) if place else config
            if not (OmegaConf.is_dict(section) and name in set(section)):
                messages.append(_unknown_key_message(key))
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
            messages += [_unknown_choice_message(override.key_or_group, value) for value in wrong]
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


def escape_interpolations(node: object) -> Any:
    """Plain data whose texts OmegaConf reads as they are: `${x}` in a class name is no interpolation."""
    if isinstance(node, dict):
        return {key: escape_interpolations(child) for key, child in node.items()}
    if isinstance(node, list | tuple):
        return [escape_interpolations(child) for child in node]
    if isinstance(node, str):
        return re.sub(r"(\\*)\$\{", r"\1\1\${", node)
    return node


@contextlib.contextmanager
def hydra_errors_as_input_errors() -> Iterator[None]:
    """Raises InputError for errors of Hydra and OmegaConf about the user's config; their other errors pass through."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra raises errors instead of printing them
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        if not _is_users_mistake(error):
            raise
        raise InputError(_config_message(error)) from error


def _is_users_mistake(error: Exception) -> bool:
    """Whether an error of Hydra's is about the config. An error inside of a constructor may be a bug of ours."""
    if not isinstance(error, InstantiationException) or isinstance(error.__cause__, InputError):
        return True
    return "Trainer" in str(error) or "unexpected keyword argument" in str(error)


def _config_message(error: Exception) -> str:
    """The message for the user: that of an InputError inside, else one for a known kind of error, else Hydra's own."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, InputError):
            return str(cause)
        cause = cause.__cause__
    text = str(error)
    if match := re.match(r"InputError raised while resolving interpolation: (.*)", text):
        return match[1]
    if match := re.search(r"Ambiguous value for argument '([^=]+)=(.*)'", text):
        return _several_values_message(*match.groups())
    if isinstance(error, OverrideParseException):
        return _parse_message(text)
    match = re.search(r"Could not find '([\w/]+)/([^']+)'", text)
    if match and (project_root() / "configs" / match[1]).is_dir():
        return _unknown_choice_message(*match.groups())
    if match := re.search(r"(?:Could not override|Key) '([^']+)'", text):
        return _unknown_key_message(match[1])
    return text.replace("\nSet the environment variable HYDRA_FULL_ERROR=1 for a complete stack trace.", "")


def _several_values_message(key: str, value: str) -> str:
    return f"{key}={value}: several values need -m, a run for each; a list is {key}=[{value}]"


def _parse_message(text: str) -> str:
    """Hydra's parser failed on an override."""
    if match := re.search(r"Error parsing override '([^'=]*)'", text):
        return f"{match[1]!r} is no override: an override is key=value"
    reason = text.splitlines()[0].removeprefix("LexerNoViableAltException: ")
    return f"{reason}. A value with special characters needs two pairs of quotes: \"key='value'\""


def _unknown_choice_message(group: str, choice: str) -> str:
    choices = choices_of(group)
    close = difflib.get_close_matches(choice, choices, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{group}={choice}: there is no such choice; {hint}There is: {', '.join(choices)}"


def _unknown_key_message(key: str) -> str:
    if key in config_keys():
        group = key.split(".")[0]
        return f"{key} is no key of the {group} that is chosen; another {group}=... has it"
    return f"unknown config key {key}{nearest(key, config_keys())}"


def config_keys() -> list[str]:
    """The config groups, and the keys of all their choices."""
    keys: set[str] = set()
    for file in (project_root() / "configs").rglob("*.yaml"):
        group = file.parent.relative_to(project_root() / "configs").as_posix()
        if group.startswith(("hydra", "experiment")):
            continue
        keys |= _flat(OmegaConf.to_container(OmegaConf.load(file)), "" if group == "." else group)
        keys.add(group)
    return sorted(key for key in keys if "_target_" not in key and not key.startswith((".", "hydra", "defaults")))


def _flat(node: object, prefix: str) -> set[str]:
    if not isinstance(node, dict):
        return {prefix}
    return {key for name, child in node.items() for key in _flat(child, f"{prefix}.{name}".strip("."))}


def run_dir(resume: str | None, requeue: bool, new: str) -> str:
    """The run folder: a new one, or for `resume=RUN` that of RUN, which may also be its last.ckpt.

    A job that Slurm may start again uses the same folder each time.
    """
    if not resume:
        job = os.environ.get("SLURM_JOB_ID") if requeue else None
        return _of_first_process(new) if job is None else str(Path(new).parent / f"slurm_{job}")
    path = Path(resume).absolute()
    if not path.exists():
        raise InputError(f"resume={resume} does not exist; give a run folder")
    folder = RunFolder.of(path)
    if path.is_file() and path != folder.last_ckpt:
        raise InputError(f"resume={resume}: a run resumes from its {folder.last_ckpt.name}; name the run folder")
    if folder.is_sweep:
        command = train_command("-m", f"resume={resume}")
        raise InputError(f"resume={resume} is the folder of a sweep, which resumes with -m: {command}")
    if not folder.config_yaml.is_file():
        raise InputError(f"resume={resume}: this folder has no {folder.config_yaml.name}, so it holds no run")
    return str(folder.path)


@functools.cache
def _of_first_process(text: str) -> str:
    """The text of rank 0, in all processes that torchrun started: their clocks may give different folder names."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return text
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    is_first = os.environ["RANK"] == "0"
    torchrun_has_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    # here: no mistake in a command line waits for the import of torch
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch's __init__ does not say that it exports

    store = TCPStore(*address, is_master=is_first and not torchrun_has_store, wait_for_workers=False, multi_tenant=True)
    key = f"stvid/run/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
    if is_first:
        store.set(key, text)
    return store.get(key).decode()


OmegaConf.register_new_resolver("run_dir", run_dir, replace=True)
