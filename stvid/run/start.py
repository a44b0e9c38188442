"""Starting a new or resumed run: its folder, the config that applies, and the files that describe it."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from stvid.data.manifest import Manifest
from stvid.distributed import is_main_process
from stvid.errors import InputError, train_command
from stvid.files import replacing
from stvid.run.checkpoint import read_record
from stvid.run.config import drop_keys_of_replaced_model
from stvid.run.config_check import check_config
from stvid.run.config_tree import escape_interpolations, to_plain
from stvid.run.folder import RunFolder, display_path
from stvid.run.lock import locked_folder
from stvid.run.overrides import quote
from stvid.run.relocation import relocate_run, video_sizes
from stvid.run.results import read_run_result
from stvid.run.resume import MANIFEST_KEY, RESUME_KEYS, resume_config, unchecked_places
from stvid.run.stored import check_same_config, read_config
from stvid.run.stored_run import NEEDED_SPLITS, has_data_root, is_requeued, read_run_config
from stvid.run.trust import trusted_modules, update_targets

log = logging.getLogger("stvid")


def is_multirun() -> bool:
    """Whether this run is one of several (`-m`). Call it before `open_run`, which removes Hydra's global state."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def open_run(config: DictConfig) -> tuple[DictConfig, RunFolder]:
    """The config that applies to a run, and its folder.

    A new run has the composed config. A resumed run has its stored config, with the allowed overrides, and the videos
    and splits of its `manifest.csv`, even if the data set's folder has changed. A run of a sweep that was killed and a
    job that Slurm starts again also resume, each in its folder.

    Raises:
        InputError: an override that is not allowed with `resume`, a new run in a folder that holds a run, or an
            invalid config (see `check_config`).
    """
    folder, is_trial = _hydra_folder(), is_multirun()
    overrides = list(HydraConfig.get().overrides.task)
    _prepare_relaunch(folder)
    is_run = folder.config_yaml.is_file()
    is_restarted = is_run and (is_trial or is_requeued(config))
    if not (config.resume or is_restarted):
        _check_holds_no_run(folder)
        config = _new_config(config, overrides)
        return _on_one_device(config) if is_trial else config, folder
    if not is_run:
        raise InputError(f"resume={config.resume} continues in its own folder; leave out hydra.run.dir")
    if config.resume:
        _relocate(folder, config, overrides)
    return _resumed_config(folder, [] if is_restarted else overrides, config), folder


def _check_holds_no_run(folder: RunFolder) -> None:
    """Raises InputError, in the main process, if a new run would mix with another one in its folder."""
    if not is_main_process() or not (found := folder.training_files):
        return
    if folder.config_yaml.is_file():
        command = train_command(f"resume={folder.path}")
        raise InputError(f"{folder.path} holds a run already. Resume it ({command}), or choose another hydra.run.dir")
    raise InputError(f"{folder.path} holds {found[0].name} of another run. Choose another hydra.run.dir")


def _new_config(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The composed config of a new run, checked."""
    config = drop_keys_of_replaced_model(config, overrides)
    config.trust = trusted_modules(config.trust, config.model.get("_target_"))
    check_config(config)
    return OmegaConf.masked_copy(config, [key for key in map(str, config) if key != "sweep"])


def _resumed_config(folder: RunFolder, overrides: Sequence[str], new: DictConfig) -> DictConfig:
    """The stored config of a run (see `read_run_config`), if it is still that of its checkpoint."""
    stored, has_manifest = read_run_config(folder, overrides, new), folder.manifest_csv.is_file()
    if has_manifest and has_data_root(overrides) and not is_main_process():
        stored.data.datamodule.manifest.data_root = escape_interpolations(str(new.data.root))
    if folder.last_ckpt.exists():
        ignored = [*unchecked_places(overrides, new), *([MANIFEST_KEY] if has_manifest else [])]
        record = update_targets(read_record(folder.last_ckpt)["config"])
        check_same_config(to_plain(stored), record, ignored=ignored, file=folder.config_yaml)
    return stored


def _relocate(folder: RunFolder, config: DictConfig, overrides: Sequence[str]) -> None:
    """Follows `data.root=NEW` beside `resume`: the videos of the run are there now. Only the main process writes."""
    if has_data_root(overrides) and is_main_process():
        relocate_run(folder, config.data.root, splits=NEEDED_SPLITS, option="data.root")


def finished_accuracy(config: DictConfig) -> float | None:
    """The video accuracy on val of a run that is resumed, but already finished; None if training is not finished."""
    folder = _hydra_folder()
    if not (config.resume or is_multirun()) or not folder.result_json.exists() or config.allow_changes:
        return None
    result = read_run_result(folder.path, needed=("config", "video_accuracy"))
    stored = read_config(folder.config_yaml)
    if config.resume:
        overrides = list(HydraConfig.get().overrides.task)
        resume_config(stored, overrides, config, log_changes=False)  # raises for overrides that are not allowed
        _relocate(folder, config, overrides)
    if _without_resume_keys(result["config"]) != _without_resume_keys(to_plain(stored)):
        return None  # the config was changed after the run finished, for example to train longer
    path = display_path(folder.path)
    command = train_command(f"resume={path}", "trainer.max_epochs=N", "allow_changes=true")
    hint = "" if is_multirun() else f"; to train longer: {command}"
    log.info("%s is finished, val video accuracy %.3f%s", path, result["video_accuracy"], hint)
    return result["video_accuracy"]


def with_used_values(config: Mapping, *, precision: str, batch_size: int) -> dict:
    """A copy of a run's config with the values that replace `auto`.

    The run records this config, so that it resumes with the same values on any machine.

    Args:
        config: the run's, resolved.
        precision: see `resolve_precision`.
        batch_size: see `plan_batch`.
    """
    used = copy.deepcopy(dict(config))
    used["trainer"]["precision"] = precision
    used["data"]["batch_size"] = used["data"]["datamodule"]["batch_size"] = batch_size
    return used


def save_run(
    folder: RunFolder, config: Mapping, manifest: Manifest, infos: Mapping[str, object] = MappingProxyType({})
) -> None:
    """Writes `config.yaml` and `manifest.csv`, from which the run is resumed and evaluated.

    Args:
        folder: the run's.
        config: the run's, resolved.
        manifest: all its videos.
        infos: path -> `VideoInfo` of the videos that were probed; their sizes need not be looked up.
    """
    # first: a kill may come between the two, and without a config the folder could not be used again
    with replacing(folder.config_yaml) as partial:
        OmegaConf.save(OmegaConf.create(escape_interpolations(dict(config))), partial)
    if not folder.manifest_csv.exists():
        manifest.write_csv(folder.manifest_csv, sizes=video_sizes([item.path for item in manifest.items], infos))


def run_summary(settings: Mapping) -> str:
    """The model and its videos, as far as they are known before the data set is read."""
    model = settings["model"]["_target_"].rpartition(".")[2]
    data = settings["data"]
    default = data["datamodule"]["manifest"]["_target_"]
    return f"{model} on {next((data[key] for key in ('root', 'path') if key in data), default)}"


def log_next_commands(folder: RunFolder, *, has_test: bool) -> None:
    """Logs how to evaluate and use a finished run; `has_test`: its data set has test videos."""
    run = shlex.quote(str(display_path(folder.path)))
    log.info("run folder   %s", run)
    log.info("test it      stvid evaluate %s%s", run, "" if has_test else " --split val")
    log.info("use it       stvid predict %s VIDEO...", run)


@contextlib.contextmanager
def locked_run() -> Iterator[None]:
    """Holds the lock of the run folder, in the main process of a run; its other processes work for it.

    Removes the folder if the block raises before there is any file in it but the log.

    Raises:
        InputError: another process trains in the folder.
    """
    folder = _hydra_folder()
    if not is_main_process():
        yield
        return
    with locked_folder(folder):
        try:
            yield
        except BaseException:
            with contextlib.suppress(OSError):  # of a folder that is gone
                if set(folder.path.iterdir()) <= {folder.train_log, folder.lock, folder.lock_holder}:
                    shutil.rmtree(folder.path, ignore_errors=True)
            raise


def _hydra_folder() -> RunFolder:
    return RunFolder(Path(HydraConfig.get().runtime.output_dir))


def _without_resume_keys(config: Mapping) -> str:
    return json.dumps({key: value for key, value in config.items() if key not in RESUME_KEYS}, sort_keys=True)


def _prepare_relaunch(folder: RunFolder) -> None:
    """Sets `sys.argv` to the command of this run in this folder: Lightning starts the other processes with it.

    Clears Hydra's global state. If it is set, Lightning reads a config from the run folder instead and redirects the
    output of the processes. The other processes log errors only.
    """
    sys.argv = [sys.argv[0], *HydraConfig.get().overrides.task, f"hydra.run.dir={quote(str(folder.path))}"]
    HydraConfig.instance().cfg = None
    if not is_main_process():
        log.setLevel(logging.ERROR)  # the main process logs everything


def _on_one_device(config: DictConfig) -> DictConfig:
    """Sets `trainer.devices=1`: a sweep trains its runs in one process, one after another.

    Raises:
        InputError: the config names several devices.
    """
    devices = config.trainer.devices
    if devices == "auto":
        config.trainer.devices = 1
    elif str(devices) != "1" and not (OmegaConf.is_list(devices) and len(devices) == 1):
        raise InputError(f"trainer.devices (={devices}): in a sweep (-m) each run has one device; leave it out")
    return config
