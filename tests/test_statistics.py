import math

import numpy as np
import pytest
from scipy.stats import binomtest

from stvid.evaluation import statistics as intervals
from stvid.evaluation.statistics import accuracy_interval


def coverage(draw, truth: float, repeats: int) -> float:
    found = [draw() for _ in range(repeats)]
    return float(np.mean([low <= truth <= high for low, high in found]))


@pytest.mark.parametrize(("accuracy", "videos"), [(0.8, 150), (0.97, 60), (0.5, 30)])
def test_intervals_over_videos_cover_the_truth_at_the_stated_rate(accuracy, videos):
    rng = np.random.default_rng(0)
    rate = coverage(lambda: accuracy_interval(rng.random(videos) < accuracy), accuracy, 4000)
    assert 0.93 < rate < 0.98


@pytest.mark.parametrize(
    ("accuracy", "alike", "groups", "size"),
    [(0.9, 0.3, 20, 6), (0.7, 0.3, 10, 6), (0.8, 0.5, 30, 10), (0.9, 0.05, 25, 4)],
)
def test_intervals_over_groups_cover_it_too_where_videos_alone_would_be_too_sure(
    accuracy, alike, groups, size, monkeypatch
):
    """A group's own accuracy is drawn from a beta distribution; `alike` is the correlation of its videos."""
    monkeypatch.setattr(intervals, "RESAMPLES", 300)
    rng = np.random.default_rng(0)
    names = np.repeat(np.arange(groups), size)
    beta = np.array([accuracy, 1 - accuracy]) * (1 / alike - 1)

    def scores() -> np.ndarray:
        return rng.random((groups, size)) < rng.beta(*beta, size=(groups, 1))

    rate = coverage(lambda: accuracy_interval(scores().ravel(), groups_N=names), accuracy, 1000)
    assert 0.915 < rate < 0.99
    if alike >= 0.3:
        assert coverage(lambda: accuracy_interval(scores().ravel()), accuracy, 1000) < rate - 0.03


def test_a_perfect_answer_on_a_few_videos_is_no_certainty():
    low, high = accuracy_interval([1.0] * 20)
    assert (round(low, 3), high) == (0.839, 1.0)  # Wilson's formula by hand: 1 / (1 + z^2 / 20)
    assert accuracy_interval([0.0] * 20) == pytest.approx((0.0, 1 - low), abs=1e-5)
    assert accuracy_interval([1.0] * 20, groups_N=[i // 4 for i in range(20)]).low < low  # five groups say less


def test_groups_that_agree_are_as_good_as_their_videos():
    groups = [i // 6 for i in range(60)]
    low, high = accuracy_interval([float(i % 6 > 0) for i in range(60)], groups_N=groups)  # each group 5 of 6
    plain = accuracy_interval([float(i % 6 > 0) for i in range(60)])
    assert 0 < plain.low - low < 0.05
    assert 0 < high - plain.high < 0.05


def test_one_group_is_no_group_and_a_group_a_video_neither():
    scores = [1.0] * 8 + [0.0] * 2
    assert accuracy_interval(scores, groups_N=["a"] * 10) == accuracy_interval(scores)
    assert accuracy_interval(scores, groups_N=range(10)) == accuracy_interval(scores)


def test_the_same_answers_give_the_same_interval():
    scores, groups = np.random.default_rng(0).random(60) < 0.8, np.arange(60) // 6
    assert accuracy_interval(scores, groups_N=groups) == accuracy_interval(scores, groups_N=groups)


@pytest.mark.parametrize(("right", "videos"), [(0, 7), (31, 40), (1, 3), (950, 1000), (20, 20)])
def test_without_groups_it_is_scipys_wilson_interval(right, videos):
    expected = binomtest(right, videos).proportion_ci(0.95, method="wilson")
    found = accuracy_interval([1.0] * right + [0.0] * (videos - right))
    assert found == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_few_groups_have_students_exact_quantile(monkeypatch):
    """Four groups whose means have a variance of 0.01: Wilson's interval of 0.5 * 0.5 / 0.01 = 25 videos, t of 3."""
    monkeypatch.setattr(intervals, "_bootstrap_variance", lambda *_: 0.01)
    found = accuracy_interval([1.0, 0.0] * 16, groups_N=[i // 8 for i in range(32)])
    t = 3.182446305284263  # quantile 0.975 of Student's distribution, from a table
    half = t * math.sqrt(0.25 / 25 + t**2 / 25**2 / 4) / (1 + t**2 / 25)
    assert found == pytest.approx((0.5 - half, 0.5 + half), abs=1e-6)
