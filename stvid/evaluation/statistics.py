"""Confidence intervals and paired tests."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats
from scipy.stats import binomtest

Z = float(stats.norm.ppf(0.975))
RESAMPLES = 2000


class Interval(NamedTuple):
    """Fractions in [0, 1]."""

    low: float
    high: float


def accuracy_interval(
    scores_N: Sequence[float],
    *,
    weights_N: Sequence[float] | None = None,
    groups_N: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> Interval:
    """95 % interval of a weighted mean of scores, such as the video accuracy of a held-out split.

    Videos of one group (a person, a scene) are alike, so a few groups say less than as many videos. How much less, a
    bootstrap over groups tells: R times as many groups as there are, drawn with replacement, and the variance of their
    means. That variance makes the effective number of videos, `p (1 - p) / variance`, from which Wilson's interval
    (1927) is taken, with Student's quantile for G - 1 degrees of freedom. So the interval has a width where all
    answers are right (each group then counts as one video), stays within [0, 1], and holds its rate with few groups,
    none of which percentiles of the bootstrap do. Without groups every video is one, and this is Wilson's interval.

    Args:
        scores_N: in [0, 1]: right (1) or wrong (0), or the share of a video's views that were right.
        weights_N: of the videos, at least 0; None: all alike. For mean class accuracy, 1 over the class's videos.
        groups_N: of the videos; None, or all the same: every video is a group of its own.
        seed: of the bootstrap.
    """
    scores = np.asarray(scores_N, dtype=float)
    weights = np.ones_like(scores) if weights_N is None else np.asarray(weights_N, dtype=float)
    mean, num_videos = float((weights * scores).sum() / weights.sum()), float(weights.sum() ** 2 / (weights**2).sum())
    groups = list(range(len(scores))) if groups_N is None else list(groups_N)
    num_groups = len(set(groups))
    if num_groups == 1 or num_groups == len(scores):
        return _wilson(mean, num_videos, Z)
    variance = _bootstrap_variance(scores, weights, groups, np.random.default_rng(seed))
    if mean in (0.0, 1.0):  # resampling is blind, and each group counts as one video
        return _wilson(mean, num_groups, Z)
    effective = min(max(mean * (1 - mean) / max(variance, 1e-12), 1.0), num_videos)
    return _wilson(mean, effective, float(stats.t.ppf(0.975, num_groups - 1)))


def _bootstrap_variance(
    scores: np.ndarray, weights: np.ndarray, groups: Sequence[Hashable], rng: np.random.Generator
) -> float:
    """Of the weighted mean over resampled groups; `G / (G - 1)` makes up for what resampling loses."""
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    places = [numbers[group] for group in groups]
    sums_G = np.bincount(places, weights * scores)
    weights_G = np.bincount(places, weights)
    counts_RG = rng.multinomial(len(numbers), np.full(len(numbers), 1 / len(numbers)), size=RESAMPLES)
    means_R = (counts_RG @ sums_G) / (counts_RG @ weights_G)
    return float(means_R.var(ddof=1)) * len(numbers) / (len(numbers) - 1)


def _wilson(share: float, num_videos: float, z: float) -> Interval:
    """`scipy.stats.binomtest(...).proportion_ci` takes whole numbers and the normal quantile only."""
    weight = z**2 / num_videos
    centre = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt(share * (1 - share) / num_videos + weight / num_videos / 4) / (1 + weight)
    return Interval(round(max(centre - half, 0.0), 6), round(min(centre + half, 1.0), 6))


def mcnemar(b: int, c: int) -> float:
    """How often a difference at least so large comes about by chance, two-sided (McNemar 1947, exact).

    Of the `b + c` videos that one model has right and the other wrong, each is then won by a toss of a coin:
    `p = min(1, 2 * sum_(i <= min(b, c)) C(b + c, i) / 2^(b + c))`. No such video: 1.
    """
    return float(binomtest(b, b + c).pvalue) if b + c else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """The values corrected for their number: below 0.05, at most one in twenty such families errs (Holm 1979)."""
    corrected, least = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        least = max(least, min((len(p_values) - rank) * p_values[i], 1.0))
        corrected[i] = least
    return corrected


def paired_interval(b: int, c: int, n: int) -> tuple[float, float]:
    """95 % interval of the difference of two accuracies on the same n videos (Tango 1998, Stat. Med. 17:891-908).

    All d that a score test does not refuse: `|b - c - n d| <= 1.96 sqrt(n (2 q + d (1 - d)))`, with q the share of
    videos that only the second has right, as it is most likely under d. As Wilson's, it has a width where all agree.

    Args:
        b: videos that only the first has right.
        c: videos that only the second has right.
        n: all videos, at least 1.
    """

    def score(d: float) -> float:
        linear, constant = (2 * n - b + c) * d - b - c, -c * d * (1 - d)
        q = (math.sqrt(max(linear**2 - 8 * n * constant, 0.0)) - linear) / (4 * n)
        spread = n * (2 * q + d * (1 - d))
        above = b - c - n * d
        return above / math.sqrt(spread) if spread > 0 else math.copysign(math.inf, above)

    def crossing(low: float, high: float, level: float) -> float:
        for _ in range(60):  # the score falls with d
            middle = (low + high) / 2
            low, high = (middle, high) if score(middle) > level else (low, middle)
        return round((low + high) / 2, 6)

    centre = (b - c) / n
    return crossing(-1.0, centre, Z), crossing(centre, 1.0, -Z)
