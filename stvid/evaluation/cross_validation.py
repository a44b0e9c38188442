"""Evaluation of the runs of a cross-validation: each on its own test videos, then all predictions together."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from stvid.errors import InputError, listing
from stvid.evaluation.evaluate import compute_metrics
from stvid.evaluation.evaluation_run import EvaluationOptions, EvaluationRun, Fold, evaluate_run, write_if_possible
from stvid.evaluation.results import PredictionRow
from stvid.evaluation.temporal_audit import audit_metrics
from stvid.run.folder import RunFolder, check_stays_inside, finished_runs

log = logging.getLogger(__name__)


def evaluate_folds(
    runs: Sequence[Path], options: EvaluationOptions, *, folder: Path, is_main_process: bool = True
) -> EvaluationRun:
    """Evaluates each run on its own test videos, then pools the predictions: a cross-validation.

    Args:
        runs: one for each fold.
        options: how to evaluate each run.
        folder: the sweep of the runs, or the folder that contains them. The pooled result goes to `evaluate/SPLIT` in
            it, or to `evaluate/SPLIT_runs_NAMES` if the runs are not all runs of a sweep.
        is_main_process: whether this process writes.

    Raises:
        InputError: see `evaluate_run` and `pool_folds`.
    """
    check_stays_inside(RunFolder(folder), trains=False)
    evaluations = []
    for number, run in enumerate(runs):
        if is_main_process:
            log.info("%s (%d of %d)", run, number + 1, len(runs))
        evaluations.append(evaluate_run(run, options, is_main_process=is_main_process))
    result, predictions = pool_folds([evaluation.fold for evaluation in evaluations if evaluation.fold is not None])
    whole = RunFolder(folder).is_sweep and [run.absolute() for run in runs] == [
        run.absolute() for run in finished_runs(folder)
    ]
    suffix = "" if whole else "_runs_" + "_".join(run.name for run in runs)
    folder = RunFolder(folder).evaluation(f"{evaluations[0].folder.name}{suffix}").path
    not_written = write_if_possible(folder, result, predictions) if is_main_process else None
    return EvaluationRun(folder=folder, fold=None, result=result, predictions=predictions, not_written=not_written)


def pool_folds(folds: Sequence[Fold]) -> tuple[dict, list[PredictionRow]]:
    """Pools the predictions of all folds as if they came from one evaluation.

    Args:
        folds: at least one.

    Returns:
        A result as of `evaluate` for the videos of all folds, and the predictions. Instead of `checkpoint`, `epoch` and
        `step` the result has `folds` (name, run, num_videos, video_accuracy) and `spread` (`mean` and sample standard
        deviation `std` of the folds' video accuracies); it has an audit if all folds have one.

    Raises:
        InputError: the folds differ in classes or views, or two folds share most of their videos.
    """
    first = folds[0].result
    for fold in folds[1:]:
        _check_same_protocol(fold, folds[0])
    _check_disjoint(folds)
    predictions = [row for fold in folds for row in fold.predictions]
    accuracies = [fold.result["video_accuracy"] for fold in folds]
    playbacks = {name: [row for fold in folds for row in fold.playbacks[name]] for name in folds[0].playbacks}
    temperatures = {fold.result["protocol"]["temperature"] for fold in folds}
    result = {
        "split": first["split"],
        "class_names": first["class_names"],
        "protocol": {**first["protocol"], "temperature": temperatures.pop() if len(temperatures) == 1 else None},
        **compute_metrics(predictions, first["class_names"]),
        **(audit_metrics(predictions, playbacks, first["class_names"], folds[0].clip) if playbacks else {}),
        "num_seen": sum(fold.result["num_seen"] for fold in folds),
        "manifest": first["manifest"],
        "folds": [
            {"name": fold.name, "run": str(fold.run)}
            | {key: fold.result[key] for key in ("num_videos", "video_accuracy")}
            for fold in folds
        ],
        "spread": {"mean": mean(accuracies), "std": stdev(accuracies) if len(accuracies) > 1 else None},
    }
    return result, predictions


def _check_same_protocol(fold: Fold, first: Fold) -> None:
    classes, first_classes = set(fold.result["class_names"]), set(first.result["class_names"])
    if fold.result["class_names"] != first.result["class_names"]:
        raise InputError(
            f"{fold.run} and {first.run} have different classes, or another order of them: "
            f"only in the first: {listing(sorted(classes - first_classes)) or '(none)'}; "
            f"only in the second: {listing(sorted(first_classes - classes)) or '(none)'}"
        )
    protocols = [{**other.result["protocol"], "temperature": None} for other in (first, fold)]
    if protocols[0] != protocols[1]:
        raise InputError(
            f"{fold.run} is evaluated with {protocols[1]}, {first.run} with {protocols[0]}: the folds of a "
            "cross-validation need the same protocol"
        )


def _check_disjoint(folds: Sequence[Fold]) -> None:
    """Official folds may share a few videos; runs that share most of them should be compared, not pooled."""
    videos = [{row.video_key for row in fold.predictions} for fold in folds]
    for (i, a), (k, b) in itertools.combinations(enumerate(videos), 2):
        if 2 * len(a & b) > min(len(a), len(b)):
            raise InputError(
                f"{folds[i].run} and {folds[k].run} are evaluated on the same videos ({len(a & b)} of {len(b)}), so "
                "they are not folds of a cross-validation; to compare runs: stvid report RUN RUN"
            )


def folds_text(result: dict) -> str:
    """Accuracy of each fold, mean and standard deviation, for a terminal."""
    folds, spread = result["folds"], result["spread"]
    width = max(len(fold["name"]) for fold in folds)
    lines = [f"{'fold':<{width}}  videos  video accuracy"]
    lines += [f"{fold['name']:<{width}}  {fold['num_videos']:>6}  {fold['video_accuracy']:>14.3f}" for fold in folds]
    std = "" if spread["std"] is None else f", standard deviation {spread['std']:.3f}"
    return "\n".join([*lines, f"mean over {len(folds)} folds {spread['mean']:.3f}{std}"])
