"""Hydra's side of a run: where configs and run folders lie, which config counts, and how a mistake in one is told."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from stvid.errors import InputError, nearest

CONFIG_NAME = "config.yaml"

# the run folder of `resume=RUN` is RUN itself
OmegaConf.register_new_resolver("run_dir", lambda resume, fresh: resume or fresh, replace=True)


def open_run(config: DictConfig) -> tuple[DictConfig, Path]:
    """The run folder that Hydra made, and the config that counts in it: a resumed run's own, otherwise this one.

    Raises:
        InputError: overrides beside `resume`, a folder to resume that holds no run, a fresh run in a folder that holds
            one already, an unknown key below `data`.
    """
    run = Path(HydraConfig.get().runtime.output_dir)
    kept = run / CONFIG_NAME
    first = _is_first_process()
    overrides = list(HydraConfig.get().overrides.task)
    _let_other_processes_join(run)
    if not config.resume:
        if kept.exists() and first:
            raise InputError(f"{run} holds a run already. Go on with it (resume={run}), or name another hydra.run.dir")
        check(config)
        return config, run
    others = [text for text in overrides if not text.startswith("resume=")]
    if others:
        raise InputError(f"resume={config.resume} goes on with the run's own config; leave out {' '.join(others)}")
    if not kept.exists():
        raise InputError(f"resume={config.resume}: no {CONFIG_NAME} there, so it holds no run")
    own = OmegaConf.load(kept)
    own.resume = config.resume
    return own, run


def _is_first_process() -> bool:
    """False in the processes that Lightning, torchrun or Slurm started beside the first one."""
    return all(int(os.environ.get(name, 0)) == 0 for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


def _let_other_processes_join(run: Path) -> None:
    """Makes the command line one that repeats just this run, in this folder: Lightning starts it for every process.

    Its own way with Hydra reads a config from the run folder and puts the processes' output elsewhere; it takes it
    only while Hydra's global state is there, which nothing needs from here on.
    """
    sys.argv = [sys.argv[0], *HydraConfig.get().overrides.task, f"hydra.run.dir={run}"]
    HydraConfig.instance().cfg = None
    if not _is_first_process():
        logging.getLogger("stvid").setLevel(logging.ERROR)  # the first process tells it all


def is_sweep() -> bool:
    """Whether this run is one of several (`-m`)."""
    return HydraConfig.get().mode == RunMode.MULTIRUN


def check(config: DictConfig) -> None:
    """Raises InputError for a value that must be given, a key under `data` without effect, or a wrong type."""
    for key in config.data:
        if OmegaConf.is_missing(config.data, key):
            raise InputError(f"data.{key} must be given: data.{key}=VALUE")
    _check_data_keys(config.data)
    for place, node in _targets(OmegaConf.to_container(config, resolve=True)):
        if node["_target_"].startswith("stvid."):
            _check_types(place, node)


def _targets(node: object, place: str = "") -> Iterator[tuple[str, dict]]:
    """Every part of a config that is built into something, with its dotted place."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield place, node
        for key, below in node.items():
            yield from _targets(below, f"{place}.{key}".strip("."))


def _check_types(place: str, node: dict) -> None:
    """Holds plain values against the annotations of what they are passed to; containers are its own matter."""
    try:
        hints = get_type_hints(getattr(get_object(node["_target_"]), "__init__", None) or {})
        hints |= get_type_hints(get_object(node["_target_"]))
    except (ImportError, AttributeError, NameError):
        return  # instantiating it will say more
    for key, value in node.items():
        if not isinstance(value, dict | list) and key in hints and not _fits(value, hints[key]):
            shown = place.removesuffix(".datamodule").removesuffix(".datamodule.manifest")
            wanted = hints[key].__name__ if isinstance(hints[key], type) else hints[key]
            raise InputError(f"{shown}.{key} (={value!r}) must be {wanted}")


def _fits(value: object, hint: object) -> bool:
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, choice) for choice in get_args(hint))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (str, bool, type(None)):
        return isinstance(value, hint)
    return hint is Any or get_origin(hint) is None


def _check_data_keys(data: DictConfig) -> None:
    """A key below `data` that the data module's wiring never mentions (added with `+`) would do nothing."""
    wiring = str(OmegaConf.to_container(data.datamodule, resolve=False))
    known = [key for key in data if f"${{data.{key}}}" in wiring]
    for key in data:
        if key != "datamodule" and key not in known:
            raise InputError(f"unknown config key data.{key}{nearest(str(key), map(str, known))}")


def home() -> Path:
    """The folder with train.py and configs/: the package's own in an installed wheel, else the checkout's root."""
    package = Path(__file__).resolve().parent
    return package if (package / "train.py").is_file() else package.parent


@contextlib.contextmanager
def report_errors() -> Iterator[None]:
    """Turns the user's mistakes into one message on stderr and exit code 2; anything else keeps its traceback."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # lets errors through to here instead of printing them itself
    try:
        yield
    except InputError as error:
        message = str(error)
    except (HydraException, OmegaConfBaseException) as error:
        message = _config_message(error)
    except (PermissionError, NotADirectoryError, FileExistsError, IsADirectoryError) as error:
        message = f"cannot use {error.filename}: {error.strerror}. Name another place (hydra.run.dir=DIR for a run)"
    else:
        return
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def _config_message(error: Exception) -> str:
    """Hydra's and OmegaConf's words, with the nearest key where one was unknown; an InputError's own words inside."""
    cause = error
    while cause is not None:
        if isinstance(cause, InputError):
            return str(cause)
        cause = cause.__cause__
    text = str(error)
    unknown = re.search(r"(?:Could not override|Key) '([^']+)'", text)
    if unknown:
        key = unknown.group(1)
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
