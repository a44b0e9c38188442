"""Cross-validation: several runs, each judged on videos of its own, as one result."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from stvid.clip import ClipSpec
from stvid.errors import InputError
from stvid.evaluation.evaluate import compute_metrics
from stvid.evaluation.results import PredictionRow
from stvid.evaluation.temporal_audit import PlaybackPredictions, audit_metrics
from stvid.run.checkpoint import TrainedModel


class Fold(NamedTuple):
    """One run of a cross-validation.

    Attributes:
        name: `fold N`, or the name of the run's folder.
        run: its folder.
        result: see `evaluate`.
        predictions: likewise.
        played: see `play`; empty where nothing was played otherwise.
        clip: the clip's geometry.
    """

    name: str
    run: Path
    result: dict
    predictions: list[PredictionRow]
    played: PlaybackPredictions
    clip: ClipSpec


def fold_name(trained: TrainedModel) -> str:
    """`fold N` where its data set has folds, else the name of its folder."""
    number = trained.config["data"].get("fold")
    return trained.folder.name if number is None else f"fold {number}"


def pool_folds(folds: Sequence[Fold]) -> tuple[dict, list[PredictionRow]]:
    """All predictions of the folds as those of one evaluation.

    Args:
        folds: at least one.

    Returns:
        A result as of `evaluate`, over the videos of all folds, with `folds` (name, run, num_videos, video_accuracy of
        each) and `spread` (`mean` and `std`, the sample deviation, of the folds' video accuracies) in the place of
        `checkpoint`, `epoch` and `step`, and an audit where all folds have one; and the predictions.

    Raises:
        InputError: other classes or views in one fold than in another, or two folds that are judged by the same videos.
    """
    first = folds[0].result
    for fold in folds[1:]:
        _check_same_protocol(fold, folds[0])
    _check_disjoint(folds)
    predictions = [one for fold in folds for one in fold.predictions]
    accuracies = [fold.result["video_accuracy"] for fold in folds]
    played = {playback: [one for fold in folds for one in fold.played[playback]] for playback in folds[0].played}
    temperatures = {fold.result["protocol"]["temperature"] for fold in folds}
    protocol = {**first["protocol"], "temperature": temperatures.pop() if len(temperatures) == 1 else None}
    result = {
        "split": first["split"],
        "class_names": first["class_names"],
        "protocol": protocol,
        **compute_metrics(predictions, first["class_names"]),
        **(audit_metrics(predictions, played, first["class_names"], folds[0].clip) if played else {}),
        "num_seen": sum(fold.result["num_seen"] for fold in folds),
        "manifest": first["manifest"],
        "folds": [
            {
                "name": fold.name,
                "run": str(fold.run),
                "num_videos": fold.result["num_videos"],
                "video_accuracy": fold.result["video_accuracy"],
            }
            for fold in folds
        ],
        "spread": {"mean": mean(accuracies), "std": stdev(accuracies) if len(accuracies) > 1 else None},
    }
    return result, predictions


def folds_text(result: dict) -> str:
    """Accuracy of each fold, then mean and spread, as lines of text."""
    folds, spread = result["folds"], result["spread"]
    width = max(len(fold["name"]) for fold in folds)
    lines = [f"{'fold':<{width}}  videos  video accuracy"]
    lines += [f"{fold['name']:<{width}}  {fold['num_videos']:>6}  {fold['video_accuracy']:>14.3f}" for fold in folds]
    std = "" if spread["std"] is None else f", standard deviation {spread['std']:.3f}"
    return "\n".join([*lines, f"mean over {len(folds)} folds {spread['mean']:.3f}{std}"])


def _check_same_protocol(fold: Fold, first: Fold) -> None:
    theirs, ours = set(fold.result["class_names"]), set(first.result["class_names"])
    if fold.result["class_names"] != first.result["class_names"]:
        raise InputError(
            f"{fold.run} has other classes than {first.run}, or another order of them: "
            f"only here: {', '.join(sorted(theirs - ours)) or '(none)'}; "
            f"only there: {', '.join(sorted(ours - theirs)) or '(none)'}"
        )
    views = [{**one.result["protocol"], "temperature": None} for one in (first, fold)]
    if views[0] != views[1]:
        raise InputError(f"{fold.run} is judged by {views[1]}, {first.run} by {views[0]}: not one cross-validation")


def _check_disjoint(folds: Sequence[Fold]) -> None:
    """Official splits may overlap a little; runs that are judged by much the same videos are to be compared."""
    videos = [{one.video for one in fold.predictions} for fold in folds]
    for (i, a), (k, b) in itertools.combinations(enumerate(videos), 2):
        if 2 * len(a & b) > min(len(a), len(b)):
            raise InputError(
                f"{folds[i].run} and {folds[k].run} are judged by the same videos "
                f"({len(a & b)} of {len(b)}): no folds of a cross-validation; stvid report RUN RUN compares runs"
            )
