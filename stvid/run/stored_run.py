"""A run that is resumed: its config and its videos, read and checked. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from stvid.checks import fields, list_of, number, text
from stvid.data.manifest import Manifest
from stvid.errors import InputError, train_command
from stvid.run.accelerator import check_gpu_is_possible
from stvid.run.config_check import check_config
from stvid.run.config_tree import escape_interpolations, to_plain
from stvid.run.folder import RunFolder, display_path
from stvid.run.relocation import find_run_videos
from stvid.run.resume import is_data_root, parse_overrides, resume_config
from stvid.run.stored import check_arguments, check_targets, read_config
from stvid.run.trust import trusted_modules
from stvid.video.shard_index import video_exists

_STORED = fields({"class_names": list_of(text(), unique=True), "data": fields({}, {"max_bad": number(0, 1)})})
NEEDED_SPLITS = ("train", "val")  # of a training
STORED_MANIFEST = "stvid.run.stored_run.stored_manifest"  # `_target_` of the manifest of a resumed run


def check_resume(folder: RunFolder, overrides: Sequence[str], new: DictConfig) -> None:
    """Raises InputError if a run cannot be resumed: see `read_run_config` and `stored_manifest`; a GPU is missing."""
    stored = read_run_config(folder, overrides, new, log_changes=False)
    check_gpu_is_possible(stored.trainer.accelerator)
    root = new.data.root if has_data_root(overrides) else None
    is_finished = folder.result_json.exists() and not new.allow_changes
    if folder.manifest_csv.is_file() and (root is not None or not is_finished):
        stored_manifest(run=str(folder.path), data_root=root)


def read_run_config(
    folder: RunFolder, overrides: Sequence[str], new: DictConfig, *, log_changes: bool = True
) -> DictConfig:
    """The config with which a run goes on. If it has a `manifest.csv`, its videos and splits are those.

    Args:
        folder: the run's.
        overrides: all overrides of the command line; none for a command that has started the run itself.
        new: the config that the command line composes for a new run.
        log_changes: log every changed value.

    Raises:
        InputError: an override that is not allowed with `resume` (see `resume_config`); a stored config that is
            damaged, of an older version, or names code that is not trusted.
    """
    trust = trusted_modules(new.trust, new.model.get("_target_"))
    stored = resume_config(read_config(folder.config_yaml), overrides, new, log_changes=log_changes)
    path = escape_interpolations(str(folder.path))
    stored.resume, stored.trust = path, trust
    if folder.manifest_csv.is_file():
        stored.data.datamodule.manifest = {"_target_": STORED_MANIFEST, "run": path}
    elif "://" in str(OmegaConf.select(stored, "data.datamodule.manifest.root")):
        raise InputError(
            f"{display_path(folder.path)} has no {folder.manifest_csv.name}, and its config names a server. Only "
            "you can choose one: start a new run with data=shards data.root=URL"
        )
    plain = to_plain(stored)
    name = f"resume={display_path(folder.path)}"
    check_targets(plain, to_plain(new), [*trust, STORED_MANIFEST], name=name)
    check_arguments(plain, to_plain(new), trust, name=name)
    try:
        check_config(stored, is_stored=True)
    except InputError as error:
        raise InputError(f"{folder.config_yaml} cannot be used: {error}") from error
    return stored


def stored_manifest(*, run: str, data_root: str | None = None) -> Manifest:
    """The videos, splits and classes of a run, as `save_run` wrote them.

    Args:
        run: the run folder.
        data_root: where the videos are now, in a process that may read the table before the main process changes it.

    Raises:
        InputError: the table is missing or damaged, or more of its videos are missing than `data.max_bad` allows.
    """
    folder = RunFolder(Path(run))
    # read here: in an argument of `_target_`, Hydra would resolve a class called ${x} and reject one called ???
    config = to_plain(read_config(folder.config_yaml))
    try:
        _STORED(config, folder.config_yaml.name)
    except InputError as error:
        raise InputError(f"{folder.config_yaml} is damaged or was changed: {error}") from error
    manifest = Manifest.read_csv(folder.manifest_csv, class_names=config["class_names"])
    if data_root is not None:
        manifest = manifest.with_paths(find_run_videos(folder, data_root, splits=NEEDED_SPLITS, option="data.root"))
    paths = {item.path for item in manifest.items if item.split != "test"}
    missing = sorted(path for path in paths if not video_exists(path))
    if len(missing) > config["data"].get("max_bad", 0) * len(paths):
        command = train_command(f"resume={display_path(folder.path)}", "data.root=NEW_FOLDER")
        raise InputError(
            f"{len(missing)} of the {len(paths)} videos that {display_path(folder.path)} trains on do not exist, the "
            f"first: {missing[0]}. Moved? Go on with {command}"
        )
    return manifest


def is_requeued(config: DictConfig) -> bool:
    """Whether Slurm has started this job again: it goes on with the run that it has started before."""
    return config.requeue and os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def has_data_root(overrides: Sequence[str]) -> bool:
    """Whether an override names the folder where the videos of the run are now."""
    return any(is_data_root(override) for override in parse_overrides(overrides))
