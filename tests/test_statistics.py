"""Confidence intervals and paired tests, against independent formulas and simulations."""

import itertools
import math
import random
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import binomtest

from stvid.evaluation import statistics
from stvid.evaluation.statistics import accuracy_interval, holm, mcnemar, paired_interval


def coverage(draw, truth: float, repeats: int) -> float:
    intervals = [draw() for _ in range(repeats)]
    return float(np.mean([low <= truth <= high for low, high in intervals]))


@pytest.mark.parametrize(("accuracy", "videos"), [(0.8, 150), (0.97, 60), (0.5, 30)])
def test_intervals_over_videos_have_their_nominal_coverage(accuracy, videos):
    rng = np.random.default_rng(0)
    rate = coverage(lambda: accuracy_interval(rng.random(videos) < accuracy), accuracy, 4000)
    assert 0.93 < rate < 0.98


@pytest.mark.parametrize(
    ("accuracy", "correlation", "groups", "size"),
    [(0.9, 0.3, 20, 6), (0.7, 0.3, 10, 6), (0.8, 0.5, 30, 10), (0.9, 0.05, 25, 4)],
)
def test_intervals_over_groups_have_it_too_and_are_wider_than_those_over_videos(
    accuracy, correlation, groups, size, monkeypatch
):
    """A group's own accuracy is drawn from a beta distribution; `correlation` is that of the videos of a group."""
    monkeypatch.setattr(statistics, "RESAMPLES", 300)
    rng = np.random.default_rng(0)
    names = np.repeat(np.arange(groups), size)
    beta = np.array([accuracy, 1 - accuracy]) * (1 / correlation - 1)

    def scores() -> np.ndarray:
        return rng.random((groups, size)) < rng.beta(*beta, size=(groups, 1))

    rate = coverage(lambda: accuracy_interval(scores().ravel(), groups_N=names), accuracy, 1000)
    assert 0.915 < rate < 0.99
    if correlation >= 0.3:
        assert coverage(lambda: accuracy_interval(scores().ravel()), accuracy, 1000) < rate - 0.03


def test_a_perfect_accuracy_has_an_interval_of_positive_width():
    low, high = accuracy_interval([1.0] * 20)
    assert (round(low, 3), high) == (0.839, 1.0)  # Wilson's formula by hand: 1 / (1 + z^2 / 20)
    assert accuracy_interval([0.0] * 20) == pytest.approx((0.0, 1 - low), abs=1e-5)
    assert accuracy_interval([1.0] * 20, groups_N=[i // 4 for i in range(20)]).low < low  # five groups


def test_groups_with_equal_accuracies_hardly_widen_the_interval():
    groups = [i // 6 for i in range(60)]
    low, high = accuracy_interval([float(i % 6 > 0) for i in range(60)], groups_N=groups)  # each group 5 of 6
    plain = accuracy_interval([float(i % 6 > 0) for i in range(60)])
    assert 0 < plain.low - low < 0.05
    assert 0 < high - plain.high < 0.05


def test_one_group_and_one_group_per_video_are_the_same_as_no_groups():
    scores = [1.0] * 8 + [0.0] * 2
    assert accuracy_interval(scores, groups_N=["a"] * 10) == accuracy_interval(scores)
    assert accuracy_interval(scores, groups_N=range(10)) == accuracy_interval(scores)


def test_the_interval_is_deterministic():
    scores, groups = np.random.default_rng(0).random(60) < 0.8, np.arange(60) // 6
    assert accuracy_interval(scores, groups_N=groups) == accuracy_interval(scores, groups_N=groups)


@pytest.mark.parametrize(("right", "videos"), [(0, 7), (31, 40), (1, 3), (950, 1000), (20, 20)])
def test_without_groups_it_is_wilsons_interval_of_scipy(right, videos):
    expected = binomtest(right, videos).proportion_ci(0.95, method="wilson")
    actual = accuracy_interval([1.0] * right + [0.0] * (videos - right))
    assert actual == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_groups_use_students_quantile(monkeypatch):
    """Four groups whose means have a variance of 0.01: Wilson's interval of 0.5 * 0.5 / 0.01 = 25 videos, t of 3."""
    monkeypatch.setattr(statistics, "_bootstrap_variance", lambda *_: 0.01)
    actual = accuracy_interval([1.0, 0.0] * 16, groups_N=[i // 8 for i in range(32)])
    t = 3.182446305284263  # quantile 0.975 of Student's distribution, from a table
    half = t * math.sqrt(0.25 / 25 + t**2 / 25**2 / 4) / (1 + t**2 / 25)
    assert actual == pytest.approx((0.5 - half, 0.5 + half), abs=1e-6)


def test_mcnemar_by_hand():
    """Of 10 discordant videos at most 1 on one side, two-sided: 2 (1 + 10) / 1024."""
    assert mcnemar(9, 1) == mcnemar(1, 9) == 22 / 1024
    assert mcnemar(0, 0) == mcnemar(1, 0) == mcnemar(5, 5) == 1
    assert mcnemar(6, 0) == 2 / 64
    assert 0 < mcnemar(3000, 2000) < 1e-40  # 2**5000 would overflow a float


def test_mcnemar_equals_the_exact_binomial_sum():
    for b, c in itertools.product(range(0, 30, 3), range(0, 40, 4)):
        tail = sum(math.comb(b + c, i) for i in range(min(b, c) + 1))
        assert mcnemar(b, c) == pytest.approx(min(1, Fraction(2 * tail, 2 ** (b + c))), rel=1e-12)


def test_mcnemar_is_fast_for_very_many_videos():
    """A sum of binomial coefficients would take minutes. Against the normal approximation, continuity corrected."""
    b, c = 100_000, 101_000
    z = (abs(b - c) - 1) / math.sqrt(b + c)
    assert mcnemar(b, c) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=1e-3)


def test_holm_by_hand():
    """In ascending order: 3 x 0.01, 2 x 0.03, and 0.04 is raised to the value before it."""
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]


@pytest.mark.parametrize(("b", "c", "n"), [(12, 2, 50), (2, 12, 50), (5, 0, 20), (7, 7, 30), (90, 60, 1000)])
def test_at_the_bounds_of_the_interval_the_score_test_has_p_0_05(b, c, n):
    """The likelihood is maximised by brute force at each bound."""

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


def test_the_paired_interval_has_a_positive_width_if_the_models_agree():
    """`z^2 / (n + z^2)` on both sides: Wilson's bound for 0 of n."""
    assert paired_interval(0, 0, 50) == pytest.approx((-3.8415 / 53.8415, 3.8415 / 53.8415), abs=1e-5)
    low, high = paired_interval(20, 0, 20)
    assert high == 1
    assert 0.6 < low < 0.8


def test_the_paired_interval_has_its_nominal_coverage():
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
