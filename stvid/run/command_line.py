"""The command line of train.py, checked before torch is imported: words, config, data set, the run that is resumed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stvid.errors import InputError, train_command
from stvid.files import file_in_the_way
from stvid.run.accelerator import check_gpu_is_possible
from stvid.run.config import compose_unchecked, first_values, hydra_errors_as_input_errors, run_dir
from stvid.run.config_check import check_config
from stvid.run.data_set import check_training_data
from stvid.run.folder import RunFolder
from stvid.run.overrides import SWEEP_FLAGS, check_flags, split_override, to_overrides
from stvid.run.stored_run import check_resume, is_requeued


def check_command_line(words: Sequence[str]) -> list[str]:
    """The words of train.py's command line as Hydra reads them, after the checks that need no torch.

    Raises:
        InputError: all mistakes in the words and in the config that they compose; a run that cannot be resumed.
    """
    check_flags(words)
    arguments = to_overrides(words)
    overrides = [word for word in arguments if word not in SWEEP_FLAGS]
    if any(word.startswith("-") for word in overrides):  # Hydra shows something, or reads other configs
        return arguments
    is_sweep = len(overrides) < len(arguments)
    _check_run_folder(overrides, key="hydra.sweep.dir" if is_sweep else "hydra.run.dir")
    settings = [text for text in overrides if text.startswith(("sweep=", "sweep."))]
    with hydra_errors_as_input_errors():
        config = compose_unchecked(first_values(overrides) if is_sweep else overrides)
        if settings and not is_sweep:
            raise InputError(f"{' '.join(settings)} is for several runs: {train_command('-m', *overrides)}")
        if config.resume is None:
            check_config(config, needs_data=True)
            check_gpu_is_possible(config.trainer.accelerator)
            if not is_requeued(config):  # then the videos are those of its run
                check_training_data(config)
        elif is_sweep and not RunFolder(Path(config.resume)).is_sweep:
            raise InputError(f"resume={config.resume} is no folder of a sweep. Resume a run without -m")
        elif not is_sweep:
            check_resume(RunFolder(Path(run_dir(config.resume, config.requeue, ""))), overrides, config)
    return arguments


def _check_run_folder(overrides: Sequence[str], *, key: str) -> None:
    """Raises InputError if a file is in the way of the folder for a new run, which Hydra makes."""
    given = dict(pair for pair in map(split_override, overrides) if pair)
    folder = given.get(key, "" if "resume" in given else "outputs").strip("'\"")
    if folder and (file := file_in_the_way(folder)):
        raise InputError(f"{key}={folder}: {file} is a file, so there can be no such folder")
