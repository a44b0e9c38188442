"""Numbers that say how good a model is, from the logits of views.

V views   N videos   K classes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

NUM_BINS = 15  # of a reliability diagram


def average_views(logits_VK: Tensor, videos_V: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of the views' softmax probabilities, video by video: the one way in which views become an answer.

    Returns:
        probabilities `N x K`, and the videos `N` they belong to, in ascending order.
    """
    videos_N, position_V = torch.unique(videos_V, return_inverse=True)
    probabilities_VK = logits_VK.float().softmax(dim=1)
    sums_NK = probabilities_VK.new_zeros(len(videos_N), logits_VK.shape[1]).index_add_(0, position_V, probabilities_VK)
    return sums_NK / torch.bincount(position_V, minlength=len(videos_N))[:, None], videos_N


def log_loss(probabilities_NK: Tensor, labels_N: Tensor) -> float:
    """Mean over videos of `-log p(true class)`, p no smaller than 1e-12."""
    true = probabilities_NK.gather(1, labels_N[:, None]).clamp_min(1e-12)
    return -true.log().mean().item()


def video_metrics(probabilities_NK: Tensor, labels_N: Tensor, failed_labels: Tensor) -> dict:
    """Everything a result says of single classes and of the probabilities, as plain data.

    Args:
        probabilities_NK: of the videos that were read.
        labels_N: their true classes.
        failed_labels: true classes of the videos that were not read; they count as wrong in `top_k_accuracy`,
            `mean_class_accuracy`, `recall` and `f1`, and are in none of the others.

    Returns:
        `top_k_accuracy` (k -> share of videos whose class is among the k most probable, k from 1 to 5, below K);
        `top5_accuracy` (1 where K <= 5, but for failed videos); `mean_class_accuracy` (mean recall over the classes
        present); `macro_f1` (mean f1 over the classes present or answered); `loss`; `ece` and `reliability` (see
        `reliability`); `confusion` (rows: truth, columns: answer); `precision`, `recall`, `f1`, `num_videos` (one per
        class; None where there is nothing to divide by).
    """
    from torchmetrics.functional.classification import multiclass_confusion_matrix  # slow to import

    num_classes = probabilities_NK.shape[1]
    # torchmetrics has no answer for a failed video, so it gets a class of its own: column K of the table. Ratios are
    # formed here, in float64: torchmetrics' recall, F1 and calibration error are float32, off by 1e-8 in result.json.
    answers = torch.cat([probabilities_NK.argmax(1), torch.full_like(failed_labels, num_classes)])
    table = multiclass_confusion_matrix(answers, torch.cat([labels_N, failed_labels]), num_classes=num_classes + 1)
    confusion, counts = table[:-1, :-1], table[:-1].sum(1)
    hits, answered = confusion.diag().double(), confusion.sum(0)
    ranked_NK = probabilities_NK.argsort(dim=1, descending=True, stable=True)  # equal ones as `argmax` takes them
    top_NK = ranked_NK[:, :5] == labels_N[:, None]
    top_K = top_NK.cumsum(1).clamp_max(1).sum(0).double() / counts.sum()
    bins = reliability(probabilities_NK, labels_N)
    f1 = _ratios(2 * hits, answered + counts)
    return {
        "top_k_accuracy": {str(k): top_K[k - 1].item() for k in range(1, min(5, num_classes - 1) + 1)},
        "top5_accuracy": top_K[-1].item(),
        "mean_class_accuracy": (hits / counts)[counts > 0].mean().item(),
        "macro_f1": sum(known) / len(known) if (known := [value for value in f1 if value is not None]) else 0.0,
        "loss": log_loss(probabilities_NK, labels_N),
        "ece": calibration_error(bins),
        "reliability": bins,
        "confusion": confusion.tolist(),
        "precision": _ratios(hits, answered),
        "recall": _ratios(hits, counts),
        "f1": f1,
        "num_videos": counts.tolist(),
    }


def reliability(probabilities_NK: Tensor, labels_N: Tensor) -> list[dict]:
    """How often answers of each confidence are right (Guo et al. 2017, arXiv:1706.04599).

    Returns:
        For each of 15 equal bins of the most probable class's probability `(low, high]`: `num_videos`, their mean
        `confidence`, and their `accuracy` (None in an empty bin).
    """
    confidences_N, answers_N = probabilities_NK.double().max(1)
    right_N = (answers_N == labels_N).double()
    places_N = (confidences_N * NUM_BINS).ceil().long().clamp(1, NUM_BINS) - 1
    counts = torch.bincount(places_N, minlength=NUM_BINS).tolist()
    confidence, accuracy = (
        torch.bincount(places_N, weights, NUM_BINS).tolist() for weights in (confidences_N, right_N)
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
    """Expected calibration error (ECE): mean distance of confidence and accuracy, weighted by each bin's videos."""
    gaps = [abs(one["accuracy"] - one["confidence"]) * one["num_videos"] for one in bins if one["num_videos"]]
    return sum(gaps) / max(sum(one["num_videos"] for one in bins), 1)


def _ratios(numerators: Tensor, denominators: Tensor) -> list[float | None]:
    pairs = zip(numerators.tolist(), denominators.tolist(), strict=True)
    return [above / below if below else None for above, below in pairs]
