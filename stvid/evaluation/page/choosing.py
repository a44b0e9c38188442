"""Which videos are shown as clips, in which order, and how many of them fit into a page."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from typing import NamedTuple

from stvid.evaluation.predictions import PredictionRow
from stvid.evaluation.previews import Preview

MISTAKES, HITS = 12, 6  # videos that are explained: the most confident mistakes, the least confident hits
MOST_CLIPS = 400  # of a page


class Choice(NamedTuple):
    """Positions of videos among the predictions; failed ones are in none.

    Attributes:
        order: all videos, those first that are worth a clip.
        mistakes: the most confident mistakes, most confident first.
        hits: the least confident hits, least confident first.
    """

    order: list[int]
    mistakes: list[int]
    hits: list[int]

    @property
    def explained(self) -> list[int]:
        return [*self.mistakes, *self.hits]


def confidence(one: PredictionRow) -> float:
    """The probability of the answer, in [0, 1]."""
    return max(one.probabilities)


def choose(predictions: Sequence[PredictionRow]) -> Choice:
    """The explained videos first, then all mistakes, then all hits, each cell of the confusion matrix in its turn.

    Within a cell, the most confident mistakes and the least confident hits come first.
    """
    read = [video for video, one in enumerate(predictions) if not one.failed]
    sure = {video: confidence(predictions[video]) for video in read}
    wrong = sorted((video for video in read if not predictions[video].is_right), key=lambda video: -sure[video])
    right = sorted((video for video in read if predictions[video].is_right), key=lambda video: sure[video])
    choice = Choice([], wrong[:MISTAKES], right[:HITS])
    first = set(choice.explained)
    rest = ([video for video in videos if video not in first] for videos in (wrong, right))
    choice.order.extend(chain(choice.explained, *(_in_turns(videos, predictions) for videos in rest)))
    return choice


def _in_turns(videos: Sequence[int], predictions: Sequence[PredictionRow]) -> list[int]:
    """First of every cell its first video, then of every cell its second one, and so on."""
    cells = defaultdict(list)
    for video in videos:
        cells[predictions[video].label, predictions[video].predicted].append(video)
    return [video for turn in zip_longest(*cells.values()) for video in turn if video is not None]


def encoded_size(preview: Preview) -> int:
    """Bytes that a preview takes in a page: base64 and its facts."""
    return 4 * (len(preview.sprite) + len(preview.focus or b"")) // 3 + 300


def fitting(order: Sequence[int], previews: Mapping[int, Preview], budget: int) -> dict[int, Preview]:
    """The previews that fit, in order; the first that does not ends the list."""
    chosen = {}
    for video in order:
        if video in previews:
            budget -= encoded_size(previews[video])
            if budget < 0 or len(chosen) == MOST_CLIPS:
                break
            chosen[video] = previews[video]
    return chosen
