"""The config of a training run: composed, checked, and errors in it turned into messages for the user."""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib.util
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException, InstantiationException, OverrideParseException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch.distributed import TCPStore

from stvid.clip import ClipSpec
from stvid.data.loading import resolve_workers
from stvid.data.manifest import Manifest
from stvid.device import num_cores
from stvid.errors import InputError, nearest, train_command
from stvid.run.config_help import choices_of
from stvid.run.folder import RunFolder, project_root

log = logging.getLogger(__name__)


def compose_config(overrides: Sequence[str]) -> DictConfig:
    """The config of `python train.py OVERRIDES`, checked."""
    with initialize_config_dir(str(project_root() / "configs"), version_base="1.3"):
        config = compose("train", overrides=list(overrides))
    config = drop_keys_of_replaced_model(config, overrides)
    check_config(config)
    return config


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


def compose_data_set(overrides: Sequence[str]) -> tuple[Manifest, ClipSpec, int, dict]:
    """The data set of `python train.py OVERRIDES`.

    Returns:
        The manifest, the clip geometry, the number of worker processes (`auto`: one per core, at least 1), and
        the limits for probing: `timeout` in seconds and `max_pixels`.
    """
    with hydra_errors_as_input_errors():
        config = compose_config(overrides)
        manifest = instantiate(config.data.datamodule.manifest, _convert_="all")
        changes = {"num_frames": None} if config.data.whole_video else {}
        clip = instantiate(config.clip, _convert_="all", **changes)
    workers = config.data.num_workers
    workers = num_cores() if workers == "auto" else max(resolve_workers(workers), 1)
    limits = {"timeout": config.data.probe_timeout, "max_pixels": config.data.max_pixels}
    return manifest, clip, workers, limits


def check_config(config: DictConfig) -> None:
    """Raises InputError for a missing value, a key under `data` without effect, a wrong type, or a missing package."""
    for key in config.data:
        if OmegaConf.is_missing(config.data, key):
            raise InputError(f"data.{key} must be given: data.{key}=VALUE")
    _check_data_keys(config.data)
    if not isinstance(config.seed, int) or not 0 <= config.seed < 2**32:
        raise InputError(f"seed (={config.seed!r}) must be a whole number from 0 to 4294967295")
    unresolved = dict(targets(OmegaConf.to_container(config, resolve=False)))
    for place, node in targets(OmegaConf.to_container(config, resolve=True)):
        if node["_target_"].startswith("stvid."):
            _check_types(place, node, unresolved.get(place, {}))
        if node["_target_"].startswith("timm.") and importlib.util.find_spec("timm") is None:
            raise InputError(f"{place} (={node['_target_']}) needs timm: pip install 'stvid[timm]'")
    _warn_of_random_stages(config.model)


def _warn_of_random_stages(model: DictConfig) -> None:
    if model.get("freeze") and not (model.get("weights") or model.get("inflate")):
        log.warning("model.freeze=%s without model.weights: this freezes randomly initialised layers", model.freeze)


def targets(node: object, place: str = "") -> Iterator[tuple[str, dict]]:
    """Every section of a config with a `_target_`, after its dotted place."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield place, node
        for key, child in node.items():
            yield from targets(child, f"{place}.{key}".strip("."))


def _check_types(place: str, node: dict, unresolved: dict) -> None:
    """Raises InputError for a value that does not fit the annotation of its parameter; lists and dicts are not checked.

    Args:
        place: of the section.
        node: the section, resolved.
        unresolved: the section with its interpolations: the message names the key that a value comes from.
    """
    try:
        hints = get_type_hints(getattr(get_object(node["_target_"]), "__init__", None) or {})
        hints |= get_type_hints(get_object(node["_target_"]))
    except (ImportError, AttributeError, NameError):
        return  # instantiating it raises a better message
    for key, value in node.items():
        if not isinstance(value, dict | list) and key in hints and not _fits(value, hints[key]):
            source = re.fullmatch(r"\$\{([\w.]+)\}", str(unresolved.get(key)))
            name = source[1] if source else f"{place}.{key}"
            type_name = hints[key].__name__ if isinstance(hints[key], type) else hints[key]
            raise InputError(f"{name} (={value!r}) must be {type_name}")


def _fits(value: object, hint: object) -> bool:
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, choice) for choice in get_args(hint))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is str:
        return isinstance(value, str | int)  # a folder may be called 2024
    if hint in (bool, type(None)):
        return isinstance(value, hint)
    return hint is Any or get_origin(hint) is None


def _check_data_keys(data: DictConfig) -> None:
    """Raises InputError for a key under `data` (added with `+`) that the data module does not get."""
    references = str(OmegaConf.to_container(data.datamodule, resolve=False))
    known = [key for key in data if f"${{data.{key}}}" in references]
    for key in data:
        if key != "datamodule" and key not in known:
            raise InputError(f"unknown config key data.{key}{nearest(str(key), map(str, known))}")


def escape_interpolations(node: object) -> object:
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
    cause = error
    while cause is not None:
        if isinstance(cause, InputError):
            return str(cause)
        cause = cause.__cause__
    text = str(error)
    if match := re.match(r"InputError raised while resolving interpolation: (.*)", text):
        return match[1]
    if match := re.search(r"Ambiguous value for argument '([^=]+)=(.*)'", text):
        key, value = match.groups()
        return f"{key}={value}: several values need -m, a run for each; a list is {key}=[{value}]"
    if isinstance(error, OverrideParseException):
        return _parse_message(text)
    match = re.search(r"Could not find '([\w/]+)/([^']+)'", text)
    if match and (project_root() / "configs" / match[1]).is_dir():
        return _unknown_choice_message(*match.groups())
    if match := re.search(r"(?:Could not override|Key) '([^']+)'", text):
        return _unknown_key_message(match[1])
    return text.replace("\nSet the environment variable HYDRA_FULL_ERROR=1 for a complete stack trace.", "")


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


def _run_dir(resume: str | None, requeue: bool, new: str) -> str:
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
    store = TCPStore(*address, is_master=is_first and not torchrun_has_store, wait_for_workers=False, multi_tenant=True)
    key = f"stvid/run/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
    if is_first:
        store.set(key, text)
    return store.get(key).decode()


OmegaConf.register_new_resolver("run_dir", _run_dir, replace=True)
