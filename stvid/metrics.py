"""Accuracy, loss and calibration metrics, computed from the logits of views.

V views   N videos   K classes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

NUM_BINS = 15  # bins of a reliability diagram
MAX_DENSE_CLASSES = 500  # with more classes, the confusion matrix is stored without its zeros


def average_views(logits_VK: Tensor, videos_V: Tensor) -> tuple[Tensor, Tensor]:
    """Averages the softmax probabilities of the views of each video. Every prediction for a video is made this way.

    Args:
        logits_VK: logits of the views.
        videos_V: index of the video of each view.

    Returns:
        Probabilities `N x K`, and the indices of the videos `N`, ascending.
    """
    videos_N, position_V = torch.unique(videos_V, return_inverse=True)
    probabilities_VK = logits_VK.float().softmax(dim=1)
    sums_NK = probabilities_VK.new_zeros(len(videos_N), logits_VK.shape[1]).index_add_(0, position_V, probabilities_VK)
    return sums_NK / torch.bincount(position_V, minlength=len(videos_N))[:, None], videos_N


def log_loss(probabilities_NK: Tensor, labels_N: Tensor) -> float:
    """Mean over the videos of `-log p(true class)`; p is clamped to at least 1e-12."""
    true = probabilities_NK.gather(1, labels_N[:, None]).clamp_min(1e-12)
    return -true.log().mean().item()


def video_metrics(probabilities_NK: Tensor, labels_N: Tensor, failed_labels: Tensor) -> dict:
    """Per-class metrics and metrics of the probabilities, as plain data.

    Args:
        probabilities_NK: probabilities of the videos that could be read.
        labels_N: their true classes.
        failed_labels: true classes of the unreadable videos. They count as wrong in `top_k_accuracy`,
            `mean_class_accuracy`, `recall` and `f1`; the other metrics ignore them.

    Returns:
        `top_k_accuracy` (k -> fraction of videos whose class is among the k most probable; k from 1 to 5, below K);
        `top5_accuracy` (if K <= 5, the fraction of readable videos); `mean_class_accuracy` (mean recall over the
        classes present); `macro_f1` (mean F1 over the classes that are present or predicted); `loss`; `ece` and
        `reliability` (see `reliability`); `confusion` or, above 500 classes, `confusion_counts` (see `confusion`);
        `precision`, `recall`, `f1`, `num_videos` (one value per class; None if the denominator is 0).
    """
    num_classes = probabilities_NK.shape[1]
    predicted_N = probabilities_NK.argmax(1)
    counts = torch.bincount(torch.cat([labels_N, failed_labels]), minlength=num_classes)
    correct = torch.bincount(labels_N[predicted_N == labels_N], minlength=num_classes).double()
    num_predicted = torch.bincount(predicted_N, minlength=num_classes)
    ranked_NK = probabilities_NK.argsort(dim=1, descending=True, stable=True)  # ties in the order of `argmax`
    top_NK = ranked_NK[:, :5] == labels_N[:, None]
    top_K = top_NK.cumsum(1).clamp_max(1).sum(0).double() / counts.sum()
    bins = reliability(probabilities_NK, labels_N)
    f1 = _ratios(2 * correct, num_predicted + counts)
    defined = [value for value in f1 if value is not None]
    return {
        "top_k_accuracy": {str(k): top_K[k - 1].item() for k in range(1, min(5, num_classes - 1) + 1)},
        "top5_accuracy": top_K[-1].item(),
        "mean_class_accuracy": (correct / counts)[counts > 0].mean().item(),
        "macro_f1": sum(defined) / len(defined) if defined else 0.0,
        "loss": log_loss(probabilities_NK, labels_N),
        "ece": calibration_error(bins),
        "reliability": bins,
        **confusion(labels_N, predicted_N, num_classes),
        "precision": _ratios(correct, num_predicted),
        "recall": _ratios(correct, counts),
        "f1": f1,
        "num_videos": counts.tolist(),
    }


def confusion(labels_N: Tensor, predicted_N: Tensor, num_classes: int) -> dict:
    """The confusion matrix as plain data, of a size that does not grow with the square of very many classes.

    Returns:
        Up to 500 classes `confusion`: rows (true class) of numbers of videos (column: predicted class). Above,
        `confusion_counts`: true class -> predicted class -> number of videos, without zeros; the classes are indices
        as text, as in JSON.
    """
    pairs, numbers = torch.unique(labels_N * num_classes + predicted_N, return_counts=True)
    cells = [
        (*divmod(pair, num_classes), number) for pair, number in zip(pairs.tolist(), numbers.tolist(), strict=True)
    ]
    if num_classes <= MAX_DENSE_CLASSES:
        rows = [[0] * num_classes for _ in range(num_classes)]
        for truth, predicted, number in cells:
            rows[truth][predicted] = number
        return {"confusion": rows}
    counts: dict[str, dict[str, int]] = {}
    for truth, predicted, number in cells:
        counts.setdefault(str(truth), {})[str(predicted)] = number
    return {"confusion_counts": counts}


def reliability(probabilities_NK: Tensor, labels_N: Tensor) -> list[dict]:
    """Accuracy as a function of confidence (Guo et al. 2017, arXiv:1706.04599).

    Returns:
        For each of 15 equal bins `(low, high]` of the highest probability: `num_videos`, their mean `confidence` and
        their `accuracy` (both None if the bin is empty).
    """
    confidences_N, predicted_N = probabilities_NK.double().max(1)
    correct_N = (predicted_N == labels_N).double()
    bins_N = (confidences_N * NUM_BINS).ceil().long().clamp(1, NUM_BINS) - 1
    counts = torch.bincount(bins_N, minlength=NUM_BINS).tolist()
    confidence, accuracy = (
        torch.bincount(bins_N, weights, NUM_BINS).tolist() for weights in (confidences_N, correct_N)
    )
    return [
        {
            "low": i / NUM_BINS,
            "high": (i + 1) / NUM_BINS,
            "num_videos": n,
            "confidence": confidence[i] / n if n else None,
            "accuracy": accuracy[i] / n if n else None,
        }
        for i, n in enumerate(counts)
    ]


def calibration_error(bins: Sequence[Mapping]) -> float:
    """Expected calibration error (ECE): mean of `|accuracy - confidence|` over the bins, weighted by their videos."""
    gaps = [abs(row["accuracy"] - row["confidence"]) * row["num_videos"] for row in bins if row["num_videos"]]
    return sum(gaps) / max(sum(row["num_videos"] for row in bins), 1)


def _ratios(numerators: Tensor, denominators: Tensor) -> list[float | None]:
    pairs = zip(numerators.tolist(), denominators.tolist(), strict=True)
    return [numerator / denominator if denominator else None for numerator, denominator in pairs]
