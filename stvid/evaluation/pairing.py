"""Two models on the same videos: could the difference be chance, and how large may it be?"""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy.stats import binomtest

from stvid.evaluation.intervals import Z


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
