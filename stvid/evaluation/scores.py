"""Every number of a result, from nothing but the table of predictions.

N videos that were read   K classes
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from stvid.errors import InputError
from stvid.evaluation.intervals import accuracy_interval
from stvid.evaluation.predictions import PredictionRow
from stvid.metrics import video_metrics


def scores_of(predictions: Sequence[PredictionRow], class_names: Sequence[str]) -> dict:
    """The keys of `result.json` that say how good the answers are; accuracies are fractions in [0, 1].

    A video that could not be read counts as wrong: in every accuracy, recall and f1. Intervals are of 95 %, see
    `accuracy_interval`: over groups where there are several, a video without a group being one of its own.

    Raises:
        InputError: not one video could be read.
    """
    read = [one for one in predictions if not one.failed]
    if not read:
        raise InputError(f"none of the {len(predictions)} videos could be read, the first: {predictions[0].path}")
    number = {name: i for i, name in enumerate(class_names)}
    failed = torch.tensor([number[one.label] for one in predictions if one.failed], dtype=torch.int64)
    probabilities_NK = torch.tensor([one.probabilities for one in read])
    metrics = video_metrics(probabilities_NK, torch.tensor([number[one.label] for one in read]), failed)

    groups = [one.video if one.group is None else one.group for one in predictions]
    over_groups = 1 < len(set(groups)) < len(groups)  # of a cross-validation, a video may be there several times
    counts = Counter(one.label for one in predictions)
    right = [float(one.is_right) for one in predictions]
    share = [one.views_right / one.views if one.views else 0.0 for one in predictions]
    known = {"groups_N": groups if over_groups else None}
    one_over_class = [1 / counts[one.label] for one in predictions]
    return {
        "num_videos": len(predictions),
        "num_failed": len(failed),
        "num_groups": len({one.group for one in predictions if one.group is not None}) or None,
        "video_accuracy": sum(right) / len(right),
        "video_accuracy_ci95": list(accuracy_interval(right, **known)),
        "clip_accuracy": sum(share) / len(share),
        "clip_accuracy_ci95": list(accuracy_interval(share, **known)),
        "mean_class_accuracy": metrics["mean_class_accuracy"],
        "mean_class_accuracy_ci95": list(accuracy_interval(right, weights_N=one_over_class, **known)),
        "interval": {
            "over": "groups" if over_groups else "videos",
            "num": len(set(groups)) if over_groups else len(right),
        },
        **{name: metrics[name] for name in ("top5_accuracy", "top_k_accuracy", "macro_f1", "loss", "ece")},
        "per_class": {
            name: {key: metrics[key][i] for key in ("precision", "recall", "f1", "num_videos")}
            for name, i in number.items()
        },
        "confusion": metrics["confusion"],
        "reliability": metrics["reliability"],
    }
