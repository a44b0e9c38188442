"""What a config may hold, and how a mistake in it is told."""

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
from stvid.run.folder import CONFIG_NAME, home

log = logging.getLogger(__name__)


def compose_config(overrides: Sequence[str]) -> DictConfig:
    """The config that `python train.py OVERRIDES` would have, checked."""
    with initialize_config_dir(str(home() / "configs"), version_base="1.3"):
        config = compose("train", overrides=list(overrides))
    config = drop_keys_of_replaced_model(config, overrides)
    check(config)
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


def compose_data_set(overrides: Sequence[str]) -> tuple[Manifest, ClipSpec, int, float]:
    """The data set that `python train.py OVERRIDES` would use.

    Returns:
        The manifest, the clip geometry, the number of worker processes (`auto`: one per core), and `probe_timeout`.
    """
    with hydra_errors_as_input_errors():
        config = compose_config(overrides)
        manifest = instantiate(config.data.datamodule.manifest, _convert_="all")
        whole = {"num_frames": None} if config.data.whole_video else {}
        clip = instantiate(config.clip, _convert_="all", **whole)
    workers = config.data.num_workers
    workers = num_cores() if workers == "auto" else max(resolve_workers(workers), 1)
    return manifest, clip, workers, config.data.probe_timeout


def check(config: DictConfig) -> None:
    """Raises InputError for a value that must be given, a key under `data` without effect, or a wrong type."""
    for key in config.data:
        if OmegaConf.is_missing(config.data, key):
            raise InputError(f"data.{key} must be given: data.{key}=VALUE")
    _check_data_keys(config.data)
    if not isinstance(config.seed, int) or not 0 <= config.seed < 2**32:
        raise InputError(f"seed (={config.seed!r}) must be a whole number from 0 to 4294967295")
    wiring = dict(targets(OmegaConf.to_container(config, resolve=False)))
    for place, node in targets(OmegaConf.to_container(config, resolve=True)):
        if node["_target_"].startswith("stvid."):
            _check_types(place, node, wiring.get(place, {}))
        if node["_target_"].startswith("timm.") and importlib.util.find_spec("timm") is None:
            raise InputError(f"{place} (={node['_target_']}) needs timm: pip install 'stvid[timm]'")
    _warn_of_random_stages(config.model)


def _warn_of_random_stages(model: DictConfig) -> None:
    if model.get("freeze") and not (model.get("weights") or model.get("inflate")):
        log.warning("model.freeze=%s without model.weights: what stays as it is, is random", model.freeze)


def targets(node: object, place: str = "") -> Iterator[tuple[str, dict]]:
    """Every part of a config that is built into something, with its dotted place."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield place, node
        for key, below in node.items():
            yield from targets(below, f"{place}.{key}".strip("."))


def _check_types(place: str, node: dict, wiring: dict) -> None:
    """Holds plain values against the annotations of what they are passed to; containers are its own matter.

    A value that comes from another key (`wiring` holds the interpolation) is told under that key's name.
    """
    try:
        hints = get_type_hints(getattr(get_object(node["_target_"]), "__init__", None) or {})
        hints |= get_type_hints(get_object(node["_target_"]))
    except (ImportError, AttributeError, NameError):
        return  # instantiating it will say more
    for key, value in node.items():
        if not isinstance(value, dict | list) and key in hints and not _fits(value, hints[key]):
            source = re.fullmatch(r"\$\{([\w.]+)\}", str(wiring.get(key)))
            wanted = hints[key].__name__ if isinstance(hints[key], type) else hints[key]
            raise InputError(f"{source[1] if source else f'{place}.{key}'} (={value!r}) must be {wanted}")


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
    """A key below `data` that the data module's wiring never mentions (added with `+`) would do nothing."""
    wiring = str(OmegaConf.to_container(data.datamodule, resolve=False))
    known = [key for key in data if f"${{data.{key}}}" in wiring]
    for key in data:
        if key != "datamodule" and key not in known:
            raise InputError(f"unknown config key data.{key}{nearest(str(key), map(str, known))}")


@functools.cache
def known_targets() -> frozenset[str]:
    """Every `_target_` in the files of configs/."""
    files = (home() / "configs").rglob("*.yaml")
    names = (re.findall(r"^\s*_target_: *([\w.]+)", file.read_text(encoding="utf-8"), re.M) for file in files)
    return frozenset(name for file_names in names for name in file_names)


def literal(node: object) -> object:
    """Plain data such that OmegaConf takes no text in it for a reference to another key, as `${x}` would be."""
    if isinstance(node, dict):
        return {key: literal(below) for key, below in node.items()}
    if isinstance(node, list | tuple):
        return [literal(below) for below in node]
    if isinstance(node, str):
        return re.sub(r"(\\*)\$\{", r"\1\1\${", node)
    return node


@contextlib.contextmanager
def hydra_errors_as_input_errors() -> Iterator[None]:
    """Raises InputError for what Hydra and OmegaConf say about the user's config; their other errors pass through."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # lets errors through to here instead of printing them itself
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        if not _is_users(error):
            raise
        raise InputError(_config_message(error)) from error


def _is_users(error: Exception) -> bool:
    """Whether an error of Hydra's is about the config; one from inside of what it builds may be a mistake of ours."""
    if not isinstance(error, InstantiationException) or isinstance(error.__cause__, InputError):
        return True
    return "Trainer" in str(error) or "unexpected keyword argument" in str(error)


def _config_message(error: Exception) -> str:
    """Hydra's and OmegaConf's words, with the nearest key where one was unknown; an InputError's own words inside."""
    cause = error
    while cause is not None:
        if isinstance(cause, InputError):
            return str(cause)
        cause = cause.__cause__
    text = str(error)
    ours = re.match(r"InputError raised while resolving interpolation: (.*)", text)
    if ours:
        return ours[1]
    several = re.search(r"Ambiguous value for argument '([^=]+)=(.*)'", text)
    if several:
        return (
            f"{several[1]}={several[2]}: several values need -m, a run for each; a list is {several[1]}=[{several[2]}]"
        )
    if isinstance(error, OverrideParseException):
        word = re.search(r"Error parsing override '([^'=]*)'", text)
        if word:
            return f"{word[1]!r} is no override: an override is key=value"
        words = text.splitlines()[0].removeprefix("LexerNoViableAltException: ")
        return f"{words}. A value with special characters needs two pairs of quotes: \"key='value'\""
    choice = re.search(r"Could not find '([\w/]+)/([^']+)'", text)
    if choice and (home() / "configs" / choice[1]).is_dir():
        there = {file.stem for file in (home() / "configs" / choice[1]).glob("*.yaml")} - {"loading"}
        close = difflib.get_close_matches(choice[2], there, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ";"
        return f"{choice[1]}={choice[2]}: there is no such choice{hint} There is: {', '.join(sorted(there))}"
    unknown = re.search(r"(?:Could not override|Key) '([^']+)'", text)
    if unknown:
        key = unknown.group(1)
        if key in config_keys():
            group = key.split(".")[0]
            return f"{key} is no key of the {group} that is chosen; another {group}=... has it"
        return f"unknown config key {key}{nearest(key, config_keys())}"
    return text.replace("\nSet the environment variable HYDRA_FULL_ERROR=1 for a complete stack trace.", "")


def config_keys() -> list[str]:
    """Every key that any choice of every config group offers, and the groups themselves."""
    keys: set[str] = set()
    for file in (home() / "configs").rglob("*.yaml"):
        group = file.parent.relative_to(home() / "configs").as_posix()
        if group.startswith(("hydra", "experiment")):
            continue
        keys |= _flat(OmegaConf.to_container(OmegaConf.load(file)), "" if group == "." else group)
        keys.add(group)
    return sorted(key for key in keys if "_target_" not in key and not key.startswith((".", "hydra", "defaults")))


def _flat(node: object, prefix: str) -> set[str]:
    if not isinstance(node, dict):
        return {prefix}
    return {key for name, below in node.items() for key in _flat(below, f"{prefix}.{name}".strip("."))}


def _run_dir(resume: str | None, requeue: bool, fresh: str) -> str:
    """The run folder: a new one, or with `resume=RUN` RUN itself (or the one around it, where RUN is a checkpoint).

    A job that Slurm may start again has one folder for all its starts.
    """
    if not resume:
        job = os.environ.get("SLURM_JOB_ID") if requeue else None
        return _agreed(fresh) if job is None else str(Path(fresh).parent / f"slurm_{job}")
    run = Path(resume).absolute()
    if run.is_file() and run.name != "last.ckpt":
        raise InputError(f"resume={resume}: a run goes on from its last.ckpt; name the run folder")
    run = run.parent.parent if run.is_file() else run
    if not run.exists():
        raise InputError(f"resume={resume} does not exist; give a run folder")
    if (run / "sweep.yaml").is_file():
        again = train_command("-m", f"resume={resume}")
        raise InputError(f"resume={resume} holds a sweep, which goes on with -m: {again}")
    if not (run / CONFIG_NAME).is_file():
        raise InputError(f"resume={resume}: no {CONFIG_NAME} there, so it holds no run")
    return str(run)


@functools.cache
def _agreed(text: str) -> str:
    """What the first process says, in all that torchrun has started: their clocks may name different folders."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return text
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    first = os.environ["RANK"] == "0"
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = TCPStore(*place, is_master=first and not hosted, wait_for_workers=False, multi_tenant=True)
    key = f"stvid/run/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
    if first:
        store.set(key, text)
    return store.get(key).decode()


OmegaConf.register_new_resolver("run_dir", _run_dir, replace=True)
