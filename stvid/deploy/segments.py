"""Probabilities over time to segments: smoothing, hysteresis, minimum duration. Pure functions over arrays.

W windows   K classes
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np

UNKNOWN = "unknown"  # label of a segment in which no class is sure enough
DEFAULT_THRESHOLD = 0.5  # without a calibrated one
LOWER_ODDS = 2 / 3  # a class ends when its odds p / (1 - p) fall below this share of the threshold's odds
NEIGHBOURS = 1  # windows on each side that smoothing looks at
BLOCK = 1 << 18  # probabilities that are smoothed at once, to bound the memory


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A part of a video with one label.

    Attributes:
        start: seconds on the file's own clock.
        end: seconds on the file's own clock, above `start`.
        label: a class, or `UNKNOWN`.
        probability: in [0, 1]: mean probability of the class over the segment's windows; of an unknown segment, the
            mean of the highest probability.
    """

    start: float
    end: float
    label: str
    probability: float


def smooth(probabilities_WK: np.ndarray, *, neighbours: int = NEIGHBOURS) -> np.ndarray:
    """Median of each class over `2 * neighbours + 1` windows, then scaled to the sum 1; `W x K`.

    Unlike a moving average, the median removes a single odd window and leaves steps where they are. At the ends, the
    first and the last window are repeated.

    Args:
        probabilities_WK: in [0, 1], sum 1; float32 or float64, as the result.
        neighbours: windows on each side; 0: none.
    """
    num_windows, num_classes = probabilities_WK.shape
    smoothed_WK = np.empty_like(probabilities_WK)
    size = max(BLOCK // num_classes, 1)  # windows
    for first in range(0, num_windows, size):
        last = min(first + size, num_windows)
        rows = np.clip(np.arange(first - neighbours, last + neighbours), 0, num_windows - 1)
        views = np.lib.stride_tricks.sliding_window_view(probabilities_WK[rows], 2 * neighbours + 1, axis=0)
        medians_WK = np.median(views, axis=-1)
        smoothed_WK[first:last] = medians_WK / np.maximum(medians_WK.sum(axis=1, keepdims=True), 1e-12)
    return smoothed_WK


class Hysteresis:
    """The class at each moment, given one probability vector after the other, without flickering.

    A class begins when it is the most probable one and its probability is at least `threshold`. It ends when its
    probability falls below `lower`, or when another class begins.

    Args:
        threshold: in (0, 1].
        lower: at most `threshold`; None: two thirds of the threshold's odds: with `l = 2 / 3 * threshold`, it is
            `l / (l + 1 - threshold)`: 0.4 for a threshold of 0.5, 0.857 for 0.9.
    """

    def __init__(self, threshold: float = DEFAULT_THRESHOLD, lower: float | None = None):
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold (={threshold}) must be above 0 and at most 1")
        share = LOWER_ODDS * threshold
        by_odds = min(share / (share + 1 - threshold), threshold)  # rounding must not make it larger
        self.threshold, self.lower = threshold, by_odds if lower is None else lower
        self.current: int | None = None

    def update(self, probabilities_K: np.ndarray) -> int | None:
        """The class after this vector, an index; None: unknown."""
        best = int(probabilities_K.argmax())
        if probabilities_K[best] >= self.threshold:
            self.current = best
        elif self.current is not None and probabilities_K[self.current] < self.lower:
            self.current = None
        return self.current


@dataclass
class _Run:
    """Windows `first` to `last - 1`, which have one class (an index; None: unknown)."""

    first: int
    last: int
    label: int | None


def find_segments(
    probabilities_WK: np.ndarray,
    centres_W: np.ndarray,
    *,
    class_names: Sequence[str],
    start: float,
    end: float,
    threshold: float = DEFAULT_THRESHOLD,
    min_duration: float = 0.0,
    neighbours: int = NEIGHBOURS,
) -> list[Segment]:
    """Segments that cover a video from `start` to `end` without gaps or overlaps.

    The probabilities are smoothed (`smooth`), `Hysteresis` gives each window a class, and segments that are too short
    are merged (`merge_short`). Between two windows of different classes, the boundary lies in the middle of their
    centres: `(centres[w] + centres[w + 1]) / 2`.

    Args:
        probabilities_WK: of the windows, W at least 1.
        centres_W: seconds, ascending: the middle of each window.
        class_names: names of the K classes.
        start: seconds: where the first segment begins.
        end: seconds: where the last segment ends.
        threshold: see `Hysteresis`.
        min_duration: seconds.
        neighbours: see `smooth`.

    Returns:
        Segments in order; two that follow each other have different labels.
    """
    smoothed_WK = smooth(probabilities_WK, neighbours=neighbours)
    hysteresis = Hysteresis(threshold)
    labels = [hysteresis.update(probabilities_K) for probabilities_K in smoothed_WK]
    edges = np.concatenate([[start], (centres_W[:-1] + centres_W[1:]) / 2, [end]])  # W + 1: where each window begins
    labels = merge_short(labels, smoothed_WK, edges, min_duration=min_duration)
    segments = []
    for run in _runs(labels):
        part = probabilities_WK[run.first : run.last]
        probability = part.max(axis=1).mean() if run.label is None else part[:, run.label].mean()
        segments.append(
            Segment(
                start=float(edges[run.first]),
                end=float(edges[run.last]),
                label=UNKNOWN if run.label is None else class_names[run.label],
                probability=float(probability),
            )
        )
    return segments


def merge_short(
    labels: Sequence[int | None], probabilities_WK: np.ndarray, edges: np.ndarray, *, min_duration: float
) -> list[int | None]:
    """Gives windows of segments shorter than `min_duration` to their neighbours, the shortest segment first.

    A segment with one neighbour, or between two of the same label, takes that label. One beside an unknown segment
    becomes unknown. One between two classes a and b is divided at the window s with the largest
    `sum of p_a before s + sum of p_b from s on`.

    Args:
        labels: of the windows, class indices; None: unknown.
        probabilities_WK: of the windows.
        edges: W + 1 times: window w counts from `edges[w]` to `edges[w + 1]`.
        min_duration: seconds.

    Returns:
        New labels of the windows.
    """
    labels, times = list(labels), edges.tolist()
    ends = {run.first: run.last for run in _runs(labels)}  # of each segment: first window -> the one after the last
    firsts = {last: first for first, last in ends.items()}
    shortest = [(times[last] - times[first], first, last) for first, last in ends.items()]
    heapq.heapify(shortest)
    while len(ends) > 1 and shortest[0][0] < min_duration:
        _, first, last = heapq.heappop(shortest)
        if ends.get(first) != last:  # it has become longer, or is gone
            continue
        left, right = firsts.get(first, first), ends.get(last, last)
        before = labels[left] if left < first else labels[last]
        after = labels[last] if last < right else labels[left]
        s = first + _division(probabilities_WK[first:last], before, after)
        labels[first:last] = [before] * (s - first) + [after] * (last - s)
        for start, end in pairwise((left, first, last, right)):
            ends.pop(start, None)
            firsts.pop(end, None)
        for start, end in pairwise((left, right) if before == after else (left, s, right)):
            ends[start], firsts[end] = end, start
            heapq.heappush(shortest, (times[end] - times[start], start, end))
    return labels


def _division(probabilities_WK: np.ndarray, before: int | None, after: int | None) -> int:
    """How many windows of a short segment the one before it gets, if the two beside it are labelled differently."""
    if before is None or after is None:
        return len(probabilities_WK) if before is None else 0
    gain = probabilities_WK[:, before] - probabilities_WK[:, after]
    return int(np.concatenate([[0.0], np.cumsum(gain, dtype=np.float64)]).argmax())


def _runs(labels: Sequence[int | None]) -> list[_Run]:
    runs, first = [], 0
    for label, windows in groupby(labels):
        last = first + len(list(windows))
        runs.append(_Run(first, last, label))
        first = last
    return runs
