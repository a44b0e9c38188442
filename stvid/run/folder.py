"""File names of runs, evaluations and sweeps, and how a RUN that a user names is found."""

from __future__ import annotations

import functools
import logging
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stvid.errors import InputError, train_command

log = logging.getLogger(__name__)
LOGS = ("train.log", "journal.log", ".lock")  # files to which text is appended
COMPARISON_HTML = "comparison.html"  # `stvid report RUN RUN...` writes it into the current folder


def _file(name: str) -> property:
    return property(lambda folder: folder.path / name)


@dataclass(frozen=True)
class RunFolder:
    """Paths of the files in the folder of a run, of an evaluation or of a sweep; no other module knows their names.

    Args:
        path: the folder. It need not exist, and any of its files may be missing.
    """

    path: Path

    # a run
    config_yaml = _file("config.yaml")  # resolved: without interpolations
    manifest_csv = _file("manifest.csv")  # videos, labels, splits
    checkpoints = _file("checkpoints")
    best_ckpt = _file("checkpoints/best.ckpt")
    last_ckpt = _file("checkpoints/last.ckpt")
    refit_ckpt = _file("checkpoints/refit.ckpt")  # trained on train and val together; for all commands that use the run
    metrics_csv = _file("metrics.csv")  # one row per epoch
    bad_videos_csv = _file("bad_videos.csv")
    train_log = _file("train.log")  # Hydra writes it, see configs/hydra/job_logging
    calibration_json = _file("calibration.json")
    lr_finder_csv = _file("lr_finder.csv")
    lr_finder_png = _file("lr_finder.png")
    # an evaluation; also a run, for its evaluation on val
    result_json = _file("result.json")
    predictions_csv = _file("predictions.csv")
    unknown_csv = _file("unknown.csv")  # predictions for videos of none of the classes
    report_html = _file("report.html")
    lock = _file(".lock")  # held while a process trains in the folder of a run or a sweep
    lock_holder = _file(".lock.json")  # which process
    # exported; see `stvid export`
    model_onnx = _file("model.onnx")
    model_int8_onnx = _file("model.int8.onnx")
    model_pt2 = _file("model.pt2")
    stream_onnx = _file("stream.onnx")
    stream_pt2 = _file("stream.pt2")
    # a sweep; its trials are the runs 0, 1, ...
    sweep_yaml = _file("sweep.yaml")
    trials_json = _file("trials.json")
    summary_csv = _file("summary.csv")
    summary_png = _file("summary.png")
    journal_log = _file("journal.log")  # of Optuna

    @classmethod
    def of(cls, run: str | Path) -> RunFolder:
        """The folder of RUN: RUN itself; for a checkpoint the run folder around it, or else its own folder."""
        path = Path(run).expanduser()
        if path.is_dir():
            return cls(path)
        folder = cls(path.absolute().parent.parent)
        return folder if folder.checkpoints == path.absolute().parent else cls(path.absolute().parent)

    @property
    def evaluated_ckpt(self) -> Path:
        """The checkpoint that a training evaluates on val: the best one, or the last one if it has not validated."""
        return self.best_ckpt if self.best_ckpt.is_file() else self.last_ckpt

    @property
    def training_files(self) -> list[Path]:
        """The files of a training, or of a sweep, that are there."""
        files = (
            *(self.config_yaml, self.manifest_csv, self.best_ckpt, self.last_ckpt, self.refit_ckpt, self.metrics_csv),
            *(self.calibration_json, self.result_json, self.predictions_csv, self.sweep_yaml),
        )
        return [file for file in files if file.exists()]

    @property
    def is_sweep(self) -> bool:
        """Whether this is the folder of a sweep or cross-validation, whose runs lie in it."""
        return self.sweep_yaml.is_file()

    def trial(self, number: int) -> RunFolder:
        """A run of this sweep."""
        return RunFolder(self.path / str(number))

    def evaluation(self, name: str) -> RunFolder:
        """An evaluation of this run or sweep.

        Args:
            name: the split, with a suffix if the evaluation has another manifest or only some of the runs.
        """
        return RunFolder(self.path / "evaluate" / name)

    @property
    def evaluated_run(self) -> RunFolder:
        """The run or sweep that this evaluation is of; a run is of itself."""
        parents = self.path.parents
        is_evaluation = len(parents) > 1 and RunFolder(parents[1]).evaluation(self.path.name) == self
        return RunFolder(parents[1]) if is_evaluation else self


def check_stays_inside(folder: RunFolder, *, trains: bool) -> None:
    """Raises InputError if files that are written into a folder would end up elsewhere, or nowhere.

    A file is replaced as a whole, which ends a link in its place. Folders and logs are written through a link; the end
    of a pipe is never reached.

    Args:
        folder: the folder of a run or a sweep; it may itself be a link.
        trains: look at everything in it; False: only at its evaluations.
    """
    root = os.path.realpath(folder.path)
    evaluations = folder.evaluation("x").path.parent
    found = folder.path.rglob("*") if trains else (evaluations, *evaluations.glob("*"))
    for path in found:
        try:
            mode = path.lstat().st_mode
        except OSError:  # it is not there yet, or another process has removed it
            continue
        if stat.S_ISLNK(mode):
            is_written_through = path.name in LOGS or not path.is_file()
            if is_written_through and not Path(os.path.realpath(path)).is_relative_to(root):
                raise InputError(
                    f"{path} is a link that leads out of {folder.path}, and stvid writes only into the folder. Put a "
                    "folder or file in its place; the whole run may lie elsewhere, behind one link"
                )
        elif not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise InputError(f"{path} is neither a file nor a folder, such as a pipe. Delete it")


def project_root() -> Path:
    """The folder with train.py and configs/: the package's own in an installed wheel, else the checkout's root."""
    package = Path(__file__).resolve().parents[1]
    return package if (package / "train.py").is_file() else package.parent


def display_path(path: Path) -> Path:
    """The path relative to the current folder if it lies below it, else unchanged."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def find_checkpoint(run: str | Path) -> Path:
    """The checkpoint of RUN: RUN itself, or in a run folder the first that is there of refit, best and last.

    Raises:
        InputError: no such folder or file, or a folder without checkpoints.
    """
    run = Path(run).expanduser()
    if run.is_file():
        return run
    if not run.exists():
        raise InputError(f"RUN {run} does not exist; give a run folder or a checkpoint (.ckpt)")
    folder = RunFolder(run)
    for checkpoint in (folder.refit_ckpt, folder.evaluated_ckpt):
        if checkpoint.is_file():
            return checkpoint
    runs = sorted(path.parents[1] for path in run.glob("*/checkpoints/*.ckpt"))
    if folder.is_sweep:
        hint = "it is the folder of a sweep: name one of its runs"
    elif runs:
        hint = f"name one of the runs in it, such as {runs[-1]}"
    else:
        hint = "was it trained?"
    raise InputError(f"{run} has no {folder.best_ckpt.relative_to(run).as_posix()}; {hint}")


def run_dir(resume: str | None, requeue: bool, new: str) -> str:
    """The folder of a training: a new one, or for `resume=RUN` that of RUN, which may also be its last.ckpt.

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


def check_runs_exist(names: Sequence[str]) -> None:
    """Raises InputError for a RUN of a command line that does not exist."""
    for name in names:
        if not Path(name).expanduser().exists():
            hint = "after a run there are no overrides" if "=" in name else "give a run folder or a checkpoint (.ckpt)"
            raise InputError(f"RUN {name} does not exist; {hint}")


def resolve_runs(names: Sequence[str]) -> tuple[list[Path], Path | None]:
    """The runs that a command line names, with each sweep replaced by its runs.

    Returns:
        The runs; and for a cross-validation the folder of its result, which is the sweep or the folder with all the
        runs. None: a single run.

    Raises:
        InputError: a RUN that does not exist; a sweep without a finished run; runs in several folders.
    """
    check_runs_exist(names)
    if len(names) == 1 and not RunFolder(Path(names[0]).expanduser()).is_sweep:
        return [Path(names[0])], None
    runs = [run for name in names for run in _runs_at(Path(name).expanduser())]
    absolute = [run.absolute() for run in runs]
    duplicates = [run for run in runs if absolute.count(run.absolute()) > 1]
    if duplicates:
        raise InputError(f"{duplicates[0]} is named twice; each run of a cross-validation has its own test videos")
    parents = {run.parent for run in absolute}
    if len(parents) > 1:
        raise InputError(
            f"the runs of a cross-validation must be in one folder, where its result is written; these are in "
            f"{', '.join(sorted(map(str, parents)))}. Move them into one folder"
        )
    return runs, parents.pop()


def _runs_at(path: Path) -> list[Path]:
    if path.is_file():
        raise InputError(f"{path} is a checkpoint; for a cross-validation, name the run folders")
    return finished_runs(path) if RunFolder(path).is_sweep else [path]


def finished_runs(sweep: Path) -> list[Path]:
    """The finished runs of a sweep, by number; a warning names the others.

    Raises:
        InputError: there is none.
    """
    trials = sorted(
        (path for path in sweep.iterdir() if path.name.isascii() and path.name.isdigit()),
        key=lambda path: int(path.name),
    )
    finished = [path for path in trials if RunFolder(path).result_json.is_file()]
    for path in trials:
        if path not in finished:
            log.warning("%s is left out: it is not finished (no %s)", path, RunFolder(path).result_json.name)
    if not finished:
        raise InputError(f"{sweep} is a sweep without a finished run")
    return finished
