"""Cross-validation: several runs, each judged on videos of its own, as one result."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from stvid.checkpoint import Trained
from stvid.errors import InputError
from stvid.evaluation.predictions import Prediction
from stvid.evaluation.scores import scores_of

Fold = tuple[Trained, dict, list[Prediction]]


def pooled(folds: Sequence[Fold]) -> tuple[dict, list[Prediction]]:
    """All predictions of the folds as those of one evaluation.

    Args:
        folds: for each its model, its result and its predictions, see `evaluate`.

    Returns:
        A result as of `evaluate`, over the videos of all folds, with `folds` (name, run, num_videos, video_accuracy of
        each) and `spread` (`mean` and `std`, the sample deviation, of the folds' video accuracies) in the place of
        `checkpoint` and `epoch`; and the predictions.

    Raises:
        InputError: other classes or views in one fold than in another, or two folds that are judged by the same videos.
    """
    first = folds[0][1]
    for trained, result, _ in folds[1:]:
        _check_alike(trained.folder, result, folds[0][0].folder, first)
    _check_apart(folds)
    predictions = [one for _, _, rows in folds for one in rows]
    accuracies = [result["video_accuracy"] for _, result, _ in folds]
    temperatures = {result["protocol"]["temperature"] for _, result, _ in folds}
    protocol = {**first["protocol"], "temperature": temperatures.pop() if len(temperatures) == 1 else None}
    result = {
        "split": first["split"],
        "class_names": first["class_names"],
        "protocol": protocol,
        **scores_of(predictions, first["class_names"]),
        "folds": [
            {
                "name": _name(trained),
                "run": str(trained.folder),
                "num_videos": result["num_videos"],
                "video_accuracy": result["video_accuracy"],
            }
            for trained, result, _ in folds
        ],
        "spread": {"mean": mean(accuracies), "std": stdev(accuracies) if len(accuracies) > 1 else None},
    }
    return result, predictions


def describe_folds(result: dict) -> str:
    """Accuracy of each fold, then mean and spread, as lines of text."""
    folds, spread = result["folds"], result["spread"]
    width = max(len(fold["name"]) for fold in folds)
    lines = [f"{'fold':<{width}}  videos  video accuracy"]
    lines += [f"{fold['name']:<{width}}  {fold['num_videos']:>6}  {fold['video_accuracy']:>14.3f}" for fold in folds]
    std = "" if spread["std"] is None else f", standard deviation {spread['std']:.3f}"
    return "\n".join([*lines, f"mean over {len(folds)} folds {spread['mean']:.3f}{std}"])


def _name(trained: Trained) -> str:
    fold = trained.config["data"].get("fold")
    return trained.folder.name if fold is None else f"fold {fold}"


def _check_alike(folder: Path, result: dict, first_folder: Path, first: dict) -> None:
    if result["class_names"] != first["class_names"]:
        theirs, ours = set(result["class_names"]), set(first["class_names"])
        raise InputError(
            f"{folder} has other classes than {first_folder}, or another order of them: "
            f"only here: {', '.join(sorted(theirs - ours)) or '(none)'}; "
            f"only there: {', '.join(sorted(ours - theirs)) or '(none)'}"
        )
    views = [{**one["protocol"], "temperature": None} for one in (first, result)]
    if views[0] != views[1]:
        raise InputError(f"{folder} is judged by {views[1]}, {first_folder} by {views[0]}: not one cross-validation")


def _check_apart(folds: Sequence[Fold]) -> None:
    """Official splits may overlap a little; runs that are judged by much the same videos are to be compared."""
    videos = [{one.video for one in predictions} for _, _, predictions in folds]
    for (i, a), (k, b) in itertools.combinations(enumerate(videos), 2):
        if 2 * len(a & b) > min(len(a), len(b)):
            raise InputError(
                f"{folds[i][0].folder} and {folds[k][0].folder} are judged by the same videos "
                f"({len(a & b)} of {len(b)}): they are no folds of a cross-validation; stvid report RUN RUN compares runs"
            )
