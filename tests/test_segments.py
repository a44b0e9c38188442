"""Segments cover the video in order; steps are found where they are; short segments go to their neighbours."""

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest

from stvid.deploy.segments import UNKNOWN, Hysteresis, find_segments, merge_short, smooth

CLASSES = ("a", "b", "c", "d")


def one_hot(labels, sure=0.94):
    """Probabilities W x 4 of labels such as `"aab.c"`; a dot: no class is sure."""
    rows = []
    for label in labels:
        row = np.full(4, (1 - sure) / 3)
        row[CLASSES.index(label) if label != "." else slice(None)] = 0.25 if label == "." else sure
        rows.append(row)
    return np.array(rows)


def centres(num_windows, hop=0.3, span=1.2):
    return span / 2 + hop * np.arange(num_windows)


def segments_of(labels, **options):
    times = centres(len(labels))
    span = {"start": 0.0, "end": float(times[-1] + 0.6)}
    return find_segments(one_hot(labels), times, class_names=CLASSES, **{**span, **options})


def names(segments):
    return [segment.label for segment in segments]


@pytest.mark.parametrize("seed", range(20))
def test_segments_cover_the_video_in_order_and_neighbours_differ(seed):
    rng = np.random.default_rng(seed)
    num_windows = int(rng.integers(1, 60))
    probabilities = rng.dirichlet(np.full(4, 0.3), num_windows)
    times = np.cumsum(rng.uniform(0.1, 0.5, num_windows)) + 5
    options = {"min_duration": float(rng.choice([0, 0.5, 2])), "threshold": float(rng.uniform(0.2, 1))}
    segments = find_segments(probabilities, times, class_names=CLASSES, start=5.0, end=float(times[-1] + 1), **options)
    assert (segments[0].start, segments[-1].end) == (5.0, times[-1] + 1)
    for one, following in pairwise(segments):
        assert one.end == following.start > one.start
        assert one.label != following.label
    if len(segments) > 1:
        assert min(segment.end - segment.start for segment in segments) >= options["min_duration"]
    assert all(0 <= segment.probability <= 1 for segment in segments)


@pytest.mark.parametrize("seed", range(5))
def test_segments_of_segments_are_the_same(seed):
    rng = np.random.default_rng(seed)
    times = centres(40)
    options = {"class_names": CLASSES, "start": 0.0, "end": float(times[-1] + 0.6), "min_duration": 1.0}
    first = find_segments(rng.dirichlet(np.full(4, 0.3), 40), times, **options)
    labels = [next(s.label for s in first if s.start <= t < s.end) for t in times]
    again = find_segments(one_hot([("." if label == UNKNOWN else label) for label in labels]), times, **options)
    assert [(s.start, s.end, s.label) for s in again] == [(s.start, s.end, s.label) for s in first]


def test_one_class_is_one_segment_with_the_mean_of_its_probability():
    times = centres(3)
    probabilities = np.array([[0.7, 0.1, 0.1, 0.1], [0.8, 0.2, 0, 0], [0.9, 0, 0.1, 0]])
    (segment,) = find_segments(probabilities, times, class_names=CLASSES, start=0, end=9)
    assert (segment.label, segment.start, segment.end) == ("a", 0, 9)
    assert segment.probability == pytest.approx(0.8)


def test_an_unknown_segment_has_the_mean_of_the_highest_probability():
    (segment,) = find_segments(
        np.array([[0.4, 0.3, 0.3, 0], [0.3, 0.4, 0.3, 0], [0.1, 0.3, 0.2, 0.4]]), centres(3), class_names=CLASSES,
        start=0, end=9,
    )  # fmt: skip
    assert (segment.label, segment.probability) == (UNKNOWN, pytest.approx(0.4))


@pytest.mark.parametrize("step", [3.0, 3.1, 3.25, 4.0])
def test_the_boundary_of_a_step_is_right_to_half_a_hop(step):
    times = centres(20)
    labels = "".join("a" if time < step else "b" for time in times)
    first, second = segments_of(labels)
    assert names([first, second]) == ["a", "b"]
    assert abs(first.end - step) <= 0.15 + 1e-9
    assert second.start == first.end


def test_a_single_odd_window_is_smoothed_away_and_steps_stay():
    assert names(segments_of("aaaabaaaa")) == ["a"]
    smoothed = smooth(one_hot("aaaabbbb"))
    np.testing.assert_allclose(smoothed, one_hot("aaaabbbb"))
    np.testing.assert_allclose(smooth(one_hot("aba"), neighbours=0), one_hot("aba"))


def test_between_the_thresholds_a_class_that_began_goes_on_and_another_does_not_begin():
    hysteresis = Hysteresis(0.5)  # the lower one is 0.4
    values = [0.45, 0.55, 0.45, 0.41, 0.39, 0.45, 0.5]
    found = [hysteresis.update(np.array([value, (1 - value) / 2, (1 - value) / 2])) for value in values]
    assert found == [None, 0, 0, 0, None, None, 0]


def test_another_class_takes_over_when_it_is_sure():
    hysteresis = Hysteresis(0.3, 0.1)
    vectors = [[0.6, 0.2, 0.2], [0.3, 0.29, 0.2], [0.31, 0.49, 0.2], [0.15, 0.25, 0.2], [0.5, 0.3, 0.2]]
    assert [hysteresis.update(np.array(vector)) for vector in vectors] == [0, 0, 1, 1, 0]


@pytest.mark.parametrize("threshold", [0.05, 0.5, 0.9, 0.9995])
def test_a_class_ends_below_two_thirds_of_the_odds_of_the_threshold(threshold):
    lower = Hysteresis(threshold).lower
    assert lower / (1 - lower) == pytest.approx(2 / 3 * threshold / (1 - threshold))
    assert Hysteresis(1.0).lower == 1.0


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.1])
def test_an_impossible_threshold_is_refused(threshold):
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        Hysteresis(threshold)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("aaaaaabbaaaaaa", ["a"]),  # between two of one class
        ("aaaaaa..bbbbbb", ["a", "b"]),  # a short pause between two classes is divided
        ("aaaaaabb......", ["a", UNKNOWN]),
        ("......bb......", [UNKNOWN]),
        ("abbbbbbbbbbbbb", ["b"]),  # the first has one neighbour
        ("aaaaaabbbbbbbb", ["a", "b"]),
    ],
)
def test_segments_below_the_minimum_duration_go_to_their_neighbours(labels, expected):
    assert names(segments_of(labels, min_duration=0.9, neighbours=0)) == expected
    assert len(segments_of(labels, neighbours=0)) >= len(expected)


def test_a_short_segment_between_two_classes_is_divided_where_the_second_becomes_more_probable():
    probabilities = one_hot("aaaaa....bbbbb")
    probabilities[5:9, 0] = [0.4, 0.35, 0.3, 0.2]
    probabilities[5:9, 1] = [0.1, 0.2, 0.25, 0.4]
    labels = [0] * 5 + [None] * 4 + [1] * 5
    edges = 0.1 * np.arange(15)
    assert merge_short(labels, probabilities, edges, min_duration=0.41) == [0] * 8 + [1] * 6


def test_smoothing_a_long_video_with_many_classes_needs_little_more_memory_than_its_result():
    probabilities_WK = np.random.default_rng(0).dirichlet(np.ones(200), size=2000)
    tracemalloc.start()
    smoothed_WK = smooth(probabilities_WK)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3.5 * smoothed_WK.nbytes
    by_hand = np.median(probabilities_WK[999:1002], axis=0)
    np.testing.assert_allclose(smoothed_WK[1000], by_hand / by_hand.sum(), atol=1e-12)
