"""Segments cover the video in order; steps are found where they are; short segments go to their neighbours."""

from itertools import groupby, pairwise

import numpy as np
import pytest

from stvid.deploy import segments
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


def merged_one_by_one(labels, probabilities_WK, edges, *, min_duration):
    """The definition of `merge_short`, in quadratic time: find the shortest segment, give it away, begin again."""
    labels = list(labels)
    while True:
        sizes = [len(list(windows)) for _, windows in groupby(labels)]
        lasts = np.cumsum(sizes)
        firsts = lasts - sizes
        lengths = edges[lasts] - edges[firsts]
        i = int(np.argmin(lengths))
        if len(sizes) == 1 or lengths[i] >= min_duration:
            return labels
        first, last = int(firsts[i]), int(lasts[i])
        beside = ([labels[first - 1]] if first else []) + ([labels[last]] if last < len(labels) else [])
        before, after = beside[0], beside[-1]
        if before is None or after is None or before == after:
            labels[first:last] = [before if before == after else None] * (last - first)
        else:
            part = probabilities_WK[first:last]
            s = int(np.concatenate([[0.0], np.cumsum(part[:, before] - part[:, after])]).argmax())
            labels[first:last] = [before] * s + [after] * (last - first - s)


@pytest.mark.parametrize("seed", range(60))
def test_the_shortest_segment_goes_first_whatever_the_labels(seed):
    rng = np.random.default_rng(seed)
    num_windows = int(rng.integers(1, 120))
    labels = np.repeat(rng.integers(-1, 4, num_windows), rng.integers(1, 4, num_windows))[:num_windows]
    labels = [None if label < 0 else int(label) for label in labels]
    probabilities = rng.dirichlet(np.full(4, 0.5), num_windows)
    steps = rng.integers(1, 4, num_windows) if seed % 2 else rng.uniform(0.1, 1, num_windows)  # with equal lengths
    if seed % 3 == 0:
        probabilities = probabilities.round(1)  # with equal sums
    edges = np.concatenate([[0.0], np.cumsum(steps)])
    for min_duration in (0.0, 2.0, 5.0, 20.0):
        arguments = (labels, probabilities, edges)
        expected = merged_one_by_one(*arguments, min_duration=min_duration)
        assert merge_short(*arguments, min_duration=min_duration) == expected


def test_merging_looks_at_each_segment_a_few_times(monkeypatch):
    divided = []
    division = segments._division
    monkeypatch.setattr(
        segments, "_division", lambda part, *labels: divided.append(len(part)) or division(part, *labels)
    )
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 20_000).tolist()
    probabilities = rng.dirichlet(np.full(4, 0.5), 20_000)
    merge_short(labels, probabilities, np.arange(20_001.0), min_duration=8.0)
    assert len(divided) < 20_000
    assert sum(divided) < 20 * 20_000  # windows; beginning again after each of them would be 20,000 * 20,000 / 2


def test_smoothing_in_blocks_is_the_median_of_three_neighbours(monkeypatch):
    monkeypatch.setattr(segments, "BLOCK", 12)  # three windows
    probabilities = np.random.default_rng(0).dirichlet(np.full(4, 0.5), 11).astype(np.float32)
    before, after = probabilities[[0, *range(10)]], probabilities[[*range(1, 11), 10]]
    medians = np.median([before, probabilities, after], axis=0)
    smoothed = smooth(probabilities)
    assert smoothed.dtype == np.float32
    np.testing.assert_allclose(smoothed, medians / medians.sum(axis=1, keepdims=True), rtol=1e-6)
