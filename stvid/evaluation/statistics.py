"""Confidence intervals and paired tests."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats
from scipy.stats import binomtest

Z = float(stats.norm.ppf(0.975))  # two-sided 95 % quantile of the normal distribution
RESAMPLES = 2000  # of the bootstrap


class Interval(NamedTuple):
    """Bounds of an accuracy, fractions in [0, 1]."""

    low: float
    high: float


def accuracy_interval(
    scores_N: Sequence[float],
    *,
    weights_N: Sequence[float] | None = None,
    groups_N: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> Interval:
    """95 % interval of a weighted mean of scores, such as the video accuracy of a test split.

    Videos of the same group (a person, a scene) are correlated, so N videos of G groups carry less information than N
    independent videos. The interval takes this into account:

    1. A bootstrap draws G groups with replacement, R times, and gives the variance of the mean.
    2. The effective number of videos is `p (1 - p) / variance`.
    3. The interval is Wilson's (1927) for this number, with Student's quantile for G - 1 degrees of freedom.

    Unlike percentiles of the bootstrap, this interval has a positive width if all predictions are correct (each group
    then counts as one video), and keeps its coverage with few groups. Without groups it is Wilson's interval.

    Args:
        scores_N: in [0, 1]: 1 for a correct and 0 for a wrong video, or the fraction of its views that are correct.
        weights_N: at least 0; None: equal weights. For mean class accuracy: 1 / (number of videos of the class).
        groups_N: group of each video; None, or a single group: the videos are independent.
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
    if mean in (0.0, 1.0):  # the bootstrap variance is 0: count each group as one video
        return _wilson(mean, num_groups, Z)
    effective = min(max(mean * (1 - mean) / max(variance, 1e-12), 1.0), num_videos)
    return _wilson(mean, effective, float(stats.t.ppf(0.975, num_groups - 1)))


def _bootstrap_variance(
    scores: np.ndarray, weights: np.ndarray, groups: Sequence[Hashable], rng: np.random.Generator
) -> float:
    """Variance of the weighted mean over resampled groups; `G / (G - 1)` removes the bias of the bootstrap."""
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    group_ids = [numbers[group] for group in groups]
    sums_G = np.bincount(group_ids, weights * scores)
    weights_G = np.bincount(group_ids, weights)
    counts_RG = rng.multinomial(len(numbers), np.full(len(numbers), 1 / len(numbers)), size=RESAMPLES)
    means_R = (counts_RG @ sums_G) / (counts_RG @ weights_G)
    return float(means_R.var(ddof=1)) * len(numbers) / (len(numbers) - 1)


def _wilson(share: float, num_videos: float, z: float) -> Interval:
    """Wilson's interval; `binomtest(...).proportion_ci` of SciPy only supports integers and the normal quantile."""
    weight = z**2 / num_videos
    centre = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt(share * (1 - share) / num_videos + weight / num_videos / 4) / (1 + weight)
    return Interval(round(max(centre - half, 0.0), 6), round(min(centre + half, 1.0), 6))


def mcnemar(b: int, c: int) -> float:
    """Two-sided p-value of the exact test of McNemar (1947).

    Under the null hypothesis, each of the `b + c` discordant videos (one model correct, the other wrong) favours either
    model with probability 1/2: `p = min(1, 2 * sum_(i <= min(b, c)) C(b + c, i) / 2^(b + c))`. Without discordant
    videos p is 1.

    Args:
        b: videos that only the first model classifies correctly.
        c: videos that only the second model classifies correctly.
    """
    return float(binomtest(b, b + c).pvalue) if b + c else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for multiple testing: controls the family-wise error rate (Holm 1979)."""
    corrected, least = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        least = max(least, min((len(p_values) - rank) * p_values[i], 1.0))
        corrected[i] = least
    return corrected


def paired_interval(b: int, c: int, n: int) -> tuple[float, float]:
    """95 % interval of the difference of two accuracies on the same n videos (Tango 1998, Stat. Med. 17:891-908).

    The interval contains every difference d that the score test accepts:
    `|b - c - n d| <= 1.96 sqrt(n (2 q + d (1 - d)))`, where q is the maximum-likelihood estimate, under d, of the
    fraction of videos that only the second model classifies correctly. Like Wilson's interval, it has a positive width
    if the models agree on every video.

    Args:
        b: videos that only the first model classifies correctly.
        c: videos that only the second model classifies correctly.
        n: number of videos, at least 1.

    Returns:
        Lower and upper bound of the first accuracy minus the second, in [-1, 1].
    """

    def score(d: float) -> float:
        linear, constant = (2 * n - b + c) * d - b - c, -c * d * (1 - d)
        q = (math.sqrt(max(linear**2 - 8 * n * constant, 0.0)) - linear) / (4 * n)
        variance = n * (2 * q + d * (1 - d))
        excess = b - c - n * d
        return excess / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, excess)

    def crossing(low: float, high: float, level: float) -> float:
        for _ in range(60):  # bisection; the score decreases with d
            middle = (low + high) / 2
            low, high = (middle, high) if score(middle) > level else (low, middle)
        return round((low + high) / 2, 6)

    centre = (b - c) / n
    return crossing(-1.0, centre, Z), crossing(centre, 1.0, -Z)


def auroc(known_N: Sequence[float], unknown_M: Sequence[float]) -> float:
    """Area under the ROC curve: the probability that a known video has a higher score than an unknown one.

    A tie counts half: this is the statistic of Mann and Whitney (1947), divided by the number of pairs.

    Args:
        known_N: at least one.
        unknown_M: at least one.
    """
    return float(_placements(known_N, unknown_M)[0].mean())


def auroc_interval(
    known_N: Sequence[float],
    unknown_M: Sequence[float],
    *,
    groups_N: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> Interval:
    """95 % interval of `auroc`.

    The variance is that of DeLong et al. (1988): that over the known videos of the share of unknown ones below each,
    plus the reverse. If the known videos have groups, a bootstrap over the groups gives the first part. The interval is
    Wilson's (1927) for the number of videos with this variance, as in `accuracy_interval`; if the scores do not
    overlap, for that of the videos or groups in the smaller of the two sets.

    Args:
        known_N, unknown_M: at least one each.
        groups_N: group of each known video; None, or a single group: the videos are independent.
        seed: of the bootstrap.
    """
    above_N, below_M = _placements(known_N, unknown_M)
    area = float(above_N.mean())
    num_groups = len(above_N) if groups_N is None else len(set(groups_N))
    has_groups = groups_N is not None and 1 < num_groups < len(above_N)
    num_known = num_groups if has_groups else len(above_N)
    quantile = float(stats.t.ppf(0.975, num_groups - 1)) if has_groups else Z
    if area in (0.0, 1.0) or min(len(above_N), len(below_M)) == 1:
        return _wilson(area, min(num_known, len(below_M)), quantile)
    if has_groups:
        rng = np.random.default_rng(seed)
        variance = _bootstrap_variance(above_N, np.ones_like(above_N), list(groups_N or ()), rng)
    else:
        variance = float(above_N.var(ddof=1)) / len(above_N)
    variance += float(below_M.var(ddof=1)) / len(below_M)
    effective = min(max(area * (1 - area) / max(variance, 1e-12), 1.0), len(above_N) + len(below_M))
    return _wilson(area, effective, quantile)


def _placements(known_N: Sequence[float], unknown_M: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """The share of unknown scores below each known one, and the share of known scores above each unknown one."""
    known, unknown = np.asarray(known_N, dtype=float), np.asarray(unknown_M, dtype=float)
    ranks = stats.rankdata(np.concatenate([known, unknown]))  # ties get their mean rank
    above_N = (ranks[: len(known)] - stats.rankdata(known)) / len(unknown)
    below_M = 1 - (ranks[len(known) :] - stats.rankdata(unknown)) / len(known)
    return above_N, below_M
