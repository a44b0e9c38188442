"""Tests and intervals of two models on the same videos."""

import itertools
import math
import random
from fractions import Fraction

import pytest

from stvid.evaluation.statistics import holm, mcnemar, paired_interval


def test_mcnemar_is_a_toss_of_a_coin():
    """By hand: of 10 differing videos 1 or fewer on one side, twice: 2 (1 + 10) / 1024."""
    assert mcnemar(9, 1) == mcnemar(1, 9) == 22 / 1024
    assert mcnemar(0, 0) == mcnemar(1, 0) == mcnemar(5, 5) == 1
    assert mcnemar(6, 0) == 2 / 64
    assert 0 < mcnemar(3000, 2000) < 1e-40  # where a float's power of two would overflow


def test_mcnemar_is_its_formula():
    for b, c in itertools.product(range(0, 30, 3), range(0, 40, 4)):
        tail = sum(math.comb(b + c, i) for i in range(min(b, c) + 1))
        assert mcnemar(b, c) == pytest.approx(min(1, Fraction(2 * tail, 2 ** (b + c))), rel=1e-12)


def test_mcnemar_of_very_many_videos_is_known_at_once():
    """A sum of binomial coefficients would take minutes. Against the normal approximation, continuity corrected."""
    b, c = 100_000, 101_000
    z = (abs(b - c) - 1) / math.sqrt(b + c)
    assert mcnemar(b, c) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=1e-3)


def test_holm_by_hand():
    """Smallest first: 3 x 0.01, 2 x 0.03, and 0.04 may not be below the one before it."""
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]


@pytest.mark.parametrize(("b", "c", "n"), [(12, 2, 50), (2, 12, 50), (5, 0, 20), (7, 7, 30), (90, 60, 1000)])
def test_at_the_ends_of_the_interval_the_score_test_just_refuses(b, c, n):
    """The likelihood is searched through for its greatest value under each end, by brute force."""

    def log_likelihood(q, d):
        cells = ((b, q + d), (c, q), (n - b - c, 1 - 2 * q - d))
        return sum(count * math.log(p) for count, p in cells if count)

    low, high = paired_interval(b, c, n)
    for d, z in ((low, 1.96), (high, -1.96)):
        first, last = max(0.0, -d), (1 - d) / 2
        inside = (first + (last - first) * i / 20001 for i in range(1, 20001))
        q = max(inside, key=lambda q: log_likelihood(q, d))
        assert (b - c - n * d) / math.sqrt(n * (2 * q + d - d * d)) == pytest.approx(z, abs=0.01)
    assert low < (b - c) / n < high


def test_the_interval_has_a_width_where_all_agree():
    """`z^2 / (n + z^2)` on both sides, which is Wilson's limit for no success in n."""
    assert paired_interval(0, 0, 50) == pytest.approx((-3.8415 / 53.8415, 3.8415 / 53.8415), abs=1e-5)
    low, high = paired_interval(20, 0, 20)
    assert high == 1
    assert 0.6 < low < 0.8


def test_the_interval_covers_the_truth_at_its_rate():
    """2,000 draws for each of several truths."""
    rng = random.Random(0)
    for n, only_first, only_second in ((30, 0.2, 0.05), (60, 0.1, 0.1), (200, 0.05, 0.02)):
        covered = 0
        for _ in range(2000):
            draws = [rng.random() for _ in range(n)]
            b = sum(draw < only_first for draw in draws)
            c = sum(only_first <= draw < only_first + only_second for draw in draws)
            low, high = paired_interval(b, c, n)
            covered += low <= only_first - only_second <= high
        assert 0.93 <= covered / 2000 <= 0.975, (n, only_first, only_second)
