"""Evaluation of a run, or of the runs of a cross-validation: audit and calibration included, results written."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stvid.data.loading import probe_cache
from stvid.errors import listing
from stvid.evaluation.calibration import calibrate
from stvid.evaluation.cross_validation import Fold, fold_name, pooled
from stvid.evaluation.evaluate import absent_classes, evaluate, select_test_split
from stvid.evaluation.results import PredictionRow, write_result
from stvid.evaluation.temporal_audit import audit, predict_playbacks
from stvid.run.checkpoint import load_checkpoint
from stvid.run.folder import is_sweep_folder, runs_in

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
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
        trust: modules outside of stvid that may be imported, see `load_checkpoint`.
    """

    split: str = "test"
    num_clips: int | None = None
    num_crops: int | None = None
    manifest: str | None = None
    allow_leaks: bool = False
    audit: bool = False
    calibrate: bool = False
    num_workers: int | str = "auto"
    trust: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class EvaluationRun:
    """What came of it.

    Attributes:
        folder: where it is written.
        fold: the run as part of a cross-validation; of the whole of one, None.
        result: as `result.json` has it.
        predictions: one a video.
        probe_cache: the file with what is known of the videos; None for several runs.
    """

    folder: Path
    fold: Fold | None
    result: dict
    predictions: list[PredictionRow]
    probe_cache: Path | None = None


def evaluate_run(run: str | Path, question: EvaluationOptions, *, speak: bool = True) -> EvaluationRun:
    """Judges one run; of several processes that do it together, the one that speaks writes.

    Raises:
        InputError: no such run or split, unknown classes, impossible views, videos the run was trained on.
    """
    trained = load_checkpoint(run, trust=question.trust)
    data = select_test_split(
        trained, split=question.split, manifest=question.manifest, allow_leaks=question.allow_leaks
    )
    absent = absent_classes(data, question.split)
    if speak and absent:
        log.warning(
            "split %r has no videos of %d of the model's %d classes, and nothing is said about these: %s",
            *(question.split, len(absent), len(trained.class_names), listing(absent)),
        )
    how = {"num_clips": question.num_clips, "num_crops": question.num_crops, "num_workers": question.num_workers}
    if question.calibrate:
        trained = calibrate(trained, select_test_split(trained, split="val"), speak=speak, **how)
    result, predictions = evaluate(trained, data, split=question.split, **how)
    result["manifest"] = question.manifest and str(Path(question.manifest).absolute())
    other = f"_{Path(question.manifest).stem}" if question.manifest else ""
    folder = trained.folder / "evaluate" / f"{question.split}{other}"
    if speak:
        write_result(folder, result, predictions)
    played = {}
    if question.audit:
        played = predict_playbacks(trained, data, split=question.split, speak=speak, **how)
        result |= audit(predictions, played, trained.class_names, trained.clip)
        if speak:
            write_result(folder, result, predictions)
    fold = Fold(fold_name(trained), trained.folder, result, predictions, played, trained.clip)
    cache = probe_cache(data)
    return EvaluationRun(folder=folder, fold=fold, result=result, predictions=predictions, probe_cache=cache)


def evaluate_folds(
    runs: Sequence[Path], question: EvaluationOptions, *, folder: Path, speak: bool = True
) -> EvaluationRun:
    """Judges each run on its own held-out videos, then all of them together: a cross-validation.

    Args:
        runs: one for each fold.
        question: how.
        folder: of the sweep that they are of, or that they lie in; `evaluate/SPLIT` in it takes what came of all, or,
            where they are not all runs of a sweep, `evaluate/SPLIT_runs_NAMES`.
        speak: whether this process writes.

    Raises:
        InputError: see `evaluate_run` and `pooled`.
    """
    judgements = []
    for number, run in enumerate(runs):
        if speak:
            log.info("%s (%d of %d)", run, number + 1, len(runs))
        judgements.append(evaluate_run(run, question, speak=speak))
    result, predictions = pooled([one.fold for one in judgements])
    whole = is_sweep_folder(folder) and [run.absolute() for run in runs] == [run.absolute() for run in runs_in(folder)]
    some = "" if whole else "_runs_" + "_".join(run.name for run in runs)
    folder = folder / "evaluate" / f"{judgements[0].folder.name}{some}"
    if speak:
        write_result(folder, result, predictions)
    return EvaluationRun(folder=folder, fold=None, result=result, predictions=predictions)
