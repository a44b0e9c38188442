import numpy as np
import pytest
from scipy.stats import t as student

from stvid.evaluation import intervals
from stvid.evaluation.intervals import accuracy_interval


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


def test_students_quantile():
    for freedom in (1, 2, 3, 5, 9, 40):
        assert intervals._student(freedom) == pytest.approx(student.ppf(0.975, freedom), rel=0.01)
