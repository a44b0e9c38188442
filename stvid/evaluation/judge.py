"""`stvid evaluate`: judges a run, or the runs of a cross-validation, and writes down what came of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stvid.checkpoint import Trained, load
from stvid.data.manifest import Manifest
from stvid.errors import InputError
from stvid.evaluation.audit import audit
from stvid.evaluation.calibration import calibrate
from stvid.evaluation.evaluate import evaluate
from stvid.evaluation.folds import pooled
from stvid.evaluation.held_out import held_out
from stvid.evaluation.predictions import Prediction, write_predictions
from stvid.files import write_json

log = logging.getLogger(__name__)

RESULT_NAME = "result.json"
PREDICTIONS_NAME = "predictions.csv"


@dataclass(frozen=True, kw_only=True)
class Question:
    """How runs are to be judged.

    Attributes:
        split: train, val or test.
        num_clips: clips spread over each video; None: as in training's validation.
        num_crops: crops of each: 1, 3 or 5; None likewise.
        manifest: a table of other videos; None: the run's own.
        allow_leaks: let it hold what the run was trained on.
        audit: play the videos in other ways, too, see `audit`.
        calibrate: fit a temperature on val first, see `calibrate`.
        num_workers: processes that read videos.
    """

    split: str = "test"
    num_clips: int | None = None
    num_crops: int | None = None
    manifest: str | None = None
    allow_leaks: bool = False
    audit: bool = False
    calibrate: bool = False
    num_workers: int | str = "auto"


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What came of it.

    Attributes:
        folder: where it is written.
        result: as `result.json` has it.
        predictions: one a video.
        trained: the model; of a cross-validation, that of the first run.
        data: its data set; of a cross-validation, None.
    """

    folder: Path
    result: dict
    predictions: list[Prediction]
    trained: Trained
    data: Manifest | None


def judge(run: str | Path, question: Question, *, speak: bool = True) -> Judgement:
    """Judges one run; of several processes that do it together, the one that speaks writes.

    Raises:
        InputError: no such run or split, other classes, impossible views, videos the run was trained on.
    """
    trained = load(run)
    data = held_out(trained, split=question.split, manifest=question.manifest, allow_leaks=question.allow_leaks)
    if question.calibrate:
        own = held_out(trained, split="val")
        trained = calibrate(trained, own, num_workers=question.num_workers, speak=speak)
    how = {"num_clips": question.num_clips, "num_crops": question.num_crops, "num_workers": question.num_workers}
    result, predictions = evaluate(trained, data, split=question.split, **how)
    if question.audit:
        result |= audit(trained, data, result, **how)
    other = f"_{Path(question.manifest).stem}" if question.manifest else ""
    folder = trained.folder / "evaluate" / f"{question.split}{other}"
    if speak:
        write_judgement(folder, result, predictions)
    return Judgement(folder=folder, result=result, predictions=predictions, trained=trained, data=data)


def judge_folds(runs: Sequence[Path], question: Question, *, folder: Path, speak: bool = True) -> Judgement:
    """Judges each run on its own held-out videos, then all of them together: a cross-validation.

    Args:
        runs: one for each fold.
        question: how.
        folder: of the sweep that they are of, or that they lie in; `evaluate/SPLIT` in it takes what came of all.
        speak: whether this process writes.

    Raises:
        InputError: see `judge` and `pooled`.
    """
    judgements = []
    for number, run in enumerate(runs):
        if speak:
            log.info("%s (%d of %d)", run, number + 1, len(runs))
        judgements.append(judge(run, question, speak=speak))
    result, predictions = pooled([(one.trained, one.result, one.predictions) for one in judgements])
    folder = folder / "evaluate" / judgements[0].folder.name
    if speak:
        write_judgement(folder, result, predictions)
    return Judgement(folder=folder, result=result, predictions=predictions, trained=judgements[0].trained, data=None)


def write_judgement(folder: Path, result: dict, predictions: Sequence[Prediction]) -> None:
    """`result.json` and `predictions.csv`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RESULT_NAME, result)
    write_predictions(folder / PREDICTIONS_NAME, predictions, result["class_names"])


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
    if len(names) == 1 and not (Path(names[0]) / "sweep.yaml").is_file():
        return [Path(names[0])], None
    runs = [run for name in names for run in _runs_in(Path(name).expanduser())]
    parents = {run.absolute().parent for run in runs}
    if len(parents) > 1:
        shown = ", ".join(sorted(map(str, parents)))
        raise InputError(f"the runs of a cross-validation lie in one folder, these lie in {shown}; name one folder's")
    return runs, parents.pop()


def _runs_in(folder: Path) -> list[Path]:
    if not (folder / "sweep.yaml").is_file():
        return [folder]
    trials = sorted((path for path in folder.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    runs = [path for path in trials if (path / RESULT_NAME).is_file()]
    for path in trials:
        if path not in runs:
            log.warning("%s is left out: it has no %s, so it was not finished", path, RESULT_NAME)
    if not runs:
        raise InputError(f"{folder} is a sweep without a finished run")
    return runs
