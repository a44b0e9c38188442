"""The run folder of a new or resumed run, and the config that counts in it."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from stvid.data.manifest import Manifest
from stvid.errors import InputError, train_command
from stvid.files import replacing
from stvid.run.checkpoint import trusted_modules, update_targets
from stvid.run.config import check, drop_keys_of_replaced_model, literal
from stvid.run.folder import CONFIG_NAME, MANIFEST_NAME, RESULT_NAME, display_path
from stvid.run.resume import OURS, check_complete, check_targets, resumed

log = logging.getLogger("stvid")


def open_run(config: DictConfig) -> tuple[DictConfig, Path]:
    """The config that counts, and the run folder that Hydra made: a run that goes on has its own of both.

    So does a run of a sweep that was killed, and one that Slurm starts again, each in the folder it had before. A run
    that goes on keeps its videos and splits too, whatever has become of the folders they once were found in.

    Raises:
        InputError: overrides beside `resume` that would change the result, a fresh run in a folder that holds one
            already, or what `check` finds.
    """
    run = Path(HydraConfig.get().runtime.output_dir)
    kept = run / CONFIG_NAME
    sweep, overrides = is_multirun(), list(HydraConfig.get().overrides.task)
    _let_other_processes_join(run)
    trust = trusted_modules(config.trust, config.model.get("_target_"))
    again = kept.exists() and (sweep or (config.requeue and os.environ.get("SLURM_RESTART_COUNT", "0") != "0"))
    if not config.resume and not again:
        if kept.exists() and _is_first_process():
            raise InputError(f"{run} holds a run already. Go on with it (resume={run}), or name another hydra.run.dir")
        config = drop_keys_of_replaced_model(config, overrides)
        config.trust = trust
        check(config)
        if not sweep:
            _check_no_sweep(overrides)
        config = OmegaConf.masked_copy(config, [key for key in config if key != "sweep"])
        return _on_one_device(config) if sweep else config, run
    if not kept.is_file():
        raise InputError(f"resume={config.resume} goes on in its own folder; leave out hydra.run.dir")
    own = OmegaConf.create(update_targets(OmegaConf.to_container(OmegaConf.load(kept), resolve=False)))
    check_complete(own, config)
    if not again:
        own = resumed(own, overrides, config)
    own.resume, own.trust = str(run), trust
    if (run / MANIFEST_NAME).is_file():
        own.data.datamodule.manifest = {"_target_": "stvid.run.start.kept_manifest", "run": str(run)}
    check_targets(own, config, [*trust, "stvid.run.start.kept_manifest"])
    return own, run


def kept_manifest(*, run: str) -> Manifest:
    """The videos, splits and classes of a run, as `save_run` wrote them down.

    Args:
        run: the run folder.

    Raises:
        InputError: the table is missing or damaged.
    """
    # read here, since Hydra would take a class called ${x} for a reference and ??? for a value that is missing
    config = OmegaConf.to_container(OmegaConf.load(Path(run) / CONFIG_NAME), resolve=True)
    return Manifest.read_csv(Path(run) / MANIFEST_NAME, class_names=config["class_names"])


def _check_no_sweep(overrides: Sequence[str]) -> None:
    useless = [text for text in overrides if text.startswith(("sweep=", "sweep."))]
    if useless:
        raise InputError(f"{' '.join(useless)} is for several runs: {train_command('-m', *overrides)}")


def finished(config: DictConfig) -> float | None:
    """What a run has reached that is asked for again and has nothing left to do; None: there is something."""
    run = Path(HydraConfig.get().runtime.output_dir)
    if not (config.resume or is_multirun()) or not (run / RESULT_NAME).is_file() or config.allow_changes:
        return None
    if config.resume:
        resumed(OmegaConf.load(run / CONFIG_NAME), list(HydraConfig.get().overrides.task), config)
    result = json.loads((run / RESULT_NAME).read_text(encoding="utf-8"))
    if _settings(result["config"]) != _settings(
        OmegaConf.to_container(OmegaConf.load(run / CONFIG_NAME), resolve=True)
    ):
        return None  # it was told to train longer since
    reached = result["video_accuracy"]
    more = (
        ""
        if is_multirun()
        else f"; to train longer: resume={display_path(run)} trainer.max_epochs=N allow_changes=true"
    )
    log.info("%s is finished, val video accuracy %.3f%s", display_path(run), reached, more)
    return reached


def _settings(config: Mapping) -> str:
    return json.dumps({key: value for key, value in config.items() if key not in OURS}, sort_keys=True)


def as_used(config: Mapping, *, precision: str, batch_size: int) -> dict:
    """A run's config with what was really used where it may say `auto`; the given one stays as it is.

    This is what the run records everywhere, so that it goes on with the same values, on another machine too.

    Args:
        config: the run's, resolved.
        precision: as `resolve_precision` gives it.
        batch_size: as `plan_batch` gives it.
    """
    config = copy.deepcopy(dict(config))
    config["trainer"]["precision"] = precision
    config["data"]["batch_size"] = config["data"]["datamodule"]["batch_size"] = batch_size
    return config


def save_run(run: Path, config: Mapping, manifest: Manifest) -> None:
    """Writes down what a run is, for whoever goes on with it or judges it."""
    if not (run / MANIFEST_NAME).exists():
        manifest.write_csv(run / MANIFEST_NAME)
    with replacing(run / CONFIG_NAME) as partial:
        OmegaConf.save(OmegaConf.create(literal(dict(config))), partial)


@contextlib.contextmanager
def leaving_no_empty_run() -> Iterator[None]:
    """Takes the run folder away again where an error came before there was anything in it but the log."""
    run = Path(HydraConfig.get().runtime.output_dir)
    try:
        yield
    except BaseException:
        if _is_first_process() and {path.name for path in run.iterdir()} <= {"train.log"}:
            shutil.rmtree(run, ignore_errors=True)
        raise


def _is_first_process() -> bool:
    """False in the processes that Lightning, torchrun or Slurm started beside the first one."""
    return all(int(os.environ.get(name, 0)) == 0 for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


def _let_other_processes_join(run: Path) -> None:
    """Makes the command line one that repeats just this run, in this folder: Lightning starts it for every process.

    Its own way with Hydra reads a config from the run folder and puts the processes' output elsewhere; it takes it
    only while Hydra's global state is there, which nothing needs from here on.
    """
    quoted = str(run).replace("\\", "\\\\").replace("'", "\\'")
    sys.argv = [sys.argv[0], *HydraConfig.get().overrides.task, f"hydra.run.dir='{quoted}'"]
    HydraConfig.instance().cfg = None
    if not _is_first_process():
        log.setLevel(logging.ERROR)  # the first process tells it all


def _on_one_device(config: DictConfig) -> DictConfig:
    """The runs of a sweep come one after the other in one process, where processes for several devices cannot."""
    devices = config.trainer.devices
    if devices == "auto":
        config.trainer.devices = 1
    elif str(devices) != "1" and not (OmegaConf.is_list(devices) and len(devices) == 1):
        raise InputError(f"trainer.devices (={devices}): in a sweep (-m) each run has one device; leave it out")
    return config


def is_multirun() -> bool:
    """Whether this run is one of several (`-m`); a single run that has begun no longer has Hydra's config."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
