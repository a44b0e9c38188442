"""The run folder: file names, and how a run, a checkpoint or a sweep is found."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from stvid.errors import InputError

log = logging.getLogger(__name__)
CHECKPOINTS = "checkpoints"
CALIBRATION_NAME = "calibration.json"
CONFIG_NAME = "config.yaml"
RESULT_NAME = "result.json"
MANIFEST_NAME = "manifest.csv"
PREDICTIONS_NAME = "predictions.csv"
REPORT_NAME = "report.html"


def home() -> Path:
    """The folder with train.py and configs/: the package's own in an installed wheel, else the checkout's root."""
    package = Path(__file__).resolve().parents[1]
    return package if (package / "train.py").is_file() else package.parent


def find_checkpoint(run: str | Path) -> Path:
    """The file behind RUN: the checkpoint itself, or a run folder's best one (its last, where none was ever judged).

    Raises:
        InputError: no such folder or file, or a folder without checkpoints.
    """
    run = Path(run).expanduser()
    if run.is_file():
        return run
    if not run.exists():
        raise InputError(f"RUN {run} does not exist; give a run folder or a checkpoint (.ckpt)")
    for path in (run / CHECKPOINTS / "best.ckpt", run / CHECKPOINTS / "last.ckpt"):
        if path.is_file():
            return path
    hint = "it holds a sweep: name one of its runs" if (run / "summary.csv").is_file() else "was it trained?"
    raise InputError(f"{run} holds no {CHECKPOINTS}/best.ckpt; {hint}")


def display_path(path: Path) -> Path:
    """A path as a person would type it here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def runs_of(names: Sequence[str]) -> tuple[list[Path], Path | None]:
    """The runs that are named, those of a sweep in its place, and the folder that a cross-validation is written to.

    Returns:
        The runs, and the sweep's folder or the one that all the runs lie in; None of a single run.

    Raises:
        InputError: something that is not there; a sweep without a finished run; runs that lie in several folders.
    """
    for name in names:
        if not Path(name).expanduser().exists():
            hint = "after a run there are no overrides" if "=" in name else "give a run folder or a checkpoint (.ckpt)"
            raise InputError(f"RUN {name} does not exist; {hint}")
    if len(names) == 1 and not is_sweep_folder(Path(names[0]).expanduser()):
        return [Path(names[0])], None
    runs = [run for name in names for run in _runs_at(Path(name).expanduser())]
    places = [run.absolute() for run in runs]
    if twice := [run for run in runs if places.count(run.absolute()) > 1]:
        raise InputError(f"{twice[0]} is named twice; the runs of a cross-validation are judged by videos of their own")
    parents = {run.absolute().parent for run in runs}
    if len(parents) > 1:
        shown = ", ".join(sorted(map(str, parents)))
        raise InputError(
            f"the runs of a cross-validation lie in one folder, where its result goes; these lie in {shown}. "
            "Move them into one"
        )
    return runs, parents.pop()


def is_sweep_folder(folder: Path) -> bool:
    """Whether several runs lie in a folder, of one search or cross-validation."""
    return (folder / "sweep.yaml").is_file()


def runs_in(folder: Path) -> list[Path]:
    """The finished runs of a sweep, by number.

    Raises:
        InputError: there is none.
    """
    trials = sorted((path for path in folder.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    runs = [path for path in trials if (path / RESULT_NAME).is_file()]
    for path in trials:
        if path not in runs:
            log.warning("%s is left out: it has no %s, so it was not finished", path, RESULT_NAME)
    if not runs:
        raise InputError(f"{folder} is a sweep without a finished run")
    return runs


def _runs_at(path: Path) -> list[Path]:
    if path.is_file():
        raise InputError(f"{path} is a checkpoint; of a cross-validation, name the runs' folders")
    return runs_in(path) if is_sweep_folder(path) else [path]
