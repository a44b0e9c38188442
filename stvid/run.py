"""The run folder: which one it is, which config counts in it, and how several processes share it."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from stvid.config import check
from stvid.errors import InputError
from stvid.evaluation.evaluate import MANIFEST_NAME

CONFIG_NAME = "config.yaml"
MANIFEST = "stvid.data.layouts.table.manifest"


def _run_dir(resume: str | None, fresh: str) -> str:
    """The run folder: a new one, or with `resume=RUN` RUN itself (or the one around it, where RUN is a checkpoint)."""
    if not resume:
        return fresh
    run = Path(resume).absolute()
    run = run.parent.parent if run.is_file() else run
    if not (run / CONFIG_NAME).is_file():
        raise InputError(f"resume={resume}: no {CONFIG_NAME} there, so it holds no run")
    return str(run)


OmegaConf.register_new_resolver("run_dir", _run_dir, replace=True)


def open_run(config: DictConfig) -> tuple[DictConfig, Path]:
    """The config that counts, and the run folder that Hydra made: a resumed run has its own of both.

    A resumed run keeps its videos and splits too, whatever has become of the folders they once were found in.

    Raises:
        InputError: overrides beside `resume`, a fresh run in a folder that holds one already, or what `check` finds.
    """
    run = Path(HydraConfig.get().runtime.output_dir)
    kept = run / CONFIG_NAME
    first, sweep = _is_first_process(), is_sweep()
    overrides = list(HydraConfig.get().overrides.task)
    _let_other_processes_join(run)
    if not config.resume:
        if kept.exists() and first:
            raise InputError(f"{run} holds a run already. Go on with it (resume={run}), or name another hydra.run.dir")
        check(config)
        return _on_one_device(config) if sweep else config, run
    others = [text for text in overrides if not text.startswith("resume=")]
    if others:
        raise InputError(f"resume={config.resume} goes on with the run's own config; leave out {' '.join(others)}")
    own = OmegaConf.load(kept)
    own.resume = str(run)
    if (run / MANIFEST_NAME).is_file():
        path, class_names = str(run / MANIFEST_NAME), own.class_names
        own.data.datamodule.manifest = {"_target_": MANIFEST, "path": path, "class_names": class_names}
    return own, run


@contextlib.contextmanager
def leaving_no_empty_run() -> Iterator[None]:
    """Takes the run folder away again where an error came before there was anything in it but the log."""
    run = Path(HydraConfig.get().runtime.output_dir)
    try:
        yield
    except BaseException:
        if {path.name for path in run.iterdir()} <= {"train.log"}:
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
        logging.getLogger("stvid").setLevel(logging.ERROR)  # the first process tells it all


def _on_one_device(config: DictConfig) -> DictConfig:
    """The runs of a sweep come one after the other in one process, where processes for several devices cannot."""
    devices = config.trainer.devices
    if devices == "auto":
        config.trainer.devices = 1
    elif str(devices) != "1" and not (OmegaConf.is_list(devices) and len(devices) == 1):
        raise InputError(f"trainer.devices (={devices}): in a sweep (-m) each run has one device; leave it out")
    return config


def is_sweep() -> bool:
    """Whether this run is one of several (`-m`)."""
    return HydraConfig.get().mode == RunMode.MULTIRUN


def shown(path: Path) -> Path:
    """A path as a person would type it here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def tell_next_steps(run: Path, *, has_test: bool) -> None:
    """What to type once a run is trained; without test videos, it is judged on val."""
    log = logging.getLogger("stvid")
    log.info("run folder   %s", shown(run))
    log.info("test it      stvid evaluate %s%s", shown(run), "" if has_test else " --split val")
    log.info("use it       stvid predict %s VIDEO...", shown(run))
