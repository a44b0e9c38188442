"""Clips on a page: which videos are shown, in which order, how many fit, and the data the script reads."""

from __future__ import annotations

import base64
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import NamedTuple

from stvid.evaluation.results import PredictionRow
from stvid.evaluation.text import part_suffix, printable
from stvid.report.previews import Preview

NUM_MISTAKES, NUM_CORRECT = 12, 6  # videos that are explained: the most confident mistakes, the least confident hits
MAX_CLIPS = 400  # of a page
MAX_VIDEOS = 3000  # videos of a page; of more, those that come first in the choice


class ClipSelection(NamedTuple):
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


def select_clips(predictions: Sequence[PredictionRow]) -> ClipSelection:
    """The explained videos first, then all mistakes, then all hits, each cell of the confusion matrix in its turn.

    Within a cell, the most confident mistakes and the least confident hits come first.
    """
    read = [video for video, one in enumerate(predictions) if not one.failed]
    sure = {video: confidence(predictions[video]) for video in read}
    wrong = sorted((video for video in read if not predictions[video].is_correct), key=lambda video: -sure[video])
    right = sorted((video for video in read if predictions[video].is_correct), key=lambda video: sure[video])
    choice = ClipSelection([], wrong[:NUM_MISTAKES], right[:NUM_CORRECT])
    first = set(choice.explained)
    rest = ([video for video in videos if video not in first] for videos in (wrong, right))
    choice.order.extend(chain(choice.explained, *(_round_robin(videos, predictions) for videos in rest)))
    return choice


def _round_robin(videos: Sequence[int], predictions: Sequence[PredictionRow]) -> list[int]:
    """First of every cell its first video, then of every cell its second one, and so on."""
    cells = defaultdict(list)
    for video in videos:
        cells[predictions[video].label, predictions[video].predicted].append(video)
    return [video for turn in zip_longest(*cells.values()) for video in turn if video is not None]


def encoded_size(preview: Preview) -> int:
    """Bytes that a preview takes in a page: base64 and its facts."""
    return 4 * (len(preview.sprite) + len(preview.focus or b"")) // 3 + 300


def previews_within_budget(order: Sequence[int], previews: Mapping[int, Preview], budget: int) -> dict[int, Preview]:
    """The previews that fit, in order; the first that does not ends the list."""
    chosen = {}
    for video in order:
        if video in previews:
            budget -= encoded_size(previews[video])
            if budget < 0 or len(chosen) == MAX_CLIPS:
                break
            chosen[video] = previews[video]
    return chosen


def common_folder(paths: Sequence[str]) -> str | None:
    """The folder that all files have in common; None where there is none but the drive."""
    try:
        common = os.path.commonpath([os.path.dirname(path) for path in paths])
    except ValueError:  # no files, or on several drives
        return None
    return common if common and common != Path(common).anchor else None


def card(one: PredictionRow, class_names: Sequence[str], root: str | None) -> dict:
    """What is written below a clip: `name`, `answer`, `confidence`, and the class to weigh it against.

    That `other` one is the truth, and where the answer was right, the next probable class; `what` says which.
    """
    name = (os.path.relpath(one.path, root) if root else one.path) + part_suffix(one.start, one.end)
    other = class_names.index(one.label)
    if one.is_correct:
        others = (i for i in range(len(class_names)) if i != other)
        other = max(others, key=lambda i: one.probabilities[i], default=other)
    return {
        "name": printable(name),
        "truth": printable(one.label),
        "answer": printable(one.predicted),
        "confidence": round(confidence(one), 4),
        "what": "next probable" if one.is_correct else "truth",
        "other": printable(class_names[other]),
        "other_probability": round(one.probabilities[other], 4),
    }


def cards(predictions: Sequence[PredictionRow], class_names: Sequence[str], choice: ClipSelection) -> dict[int, dict]:
    """The cards of the videos that the page can show, in the order of the choice."""
    root = common_folder([one.path for one in predictions])
    return {video: card(predictions[video], class_names, root) for video in choice.order[:MAX_VIDEOS]}


def page_data(
    predictions: Sequence[PredictionRow],
    class_names: Sequence[str],
    shown: Mapping[int, dict],
    totals: Mapping[str, int],
    previews: Mapping[int, Preview],
) -> dict:
    """For the script: `classes`, `videos` (the cards), `cells`, their `totals`, `clips`, and the range of `evidence`.

    `cells`: `TRUTH-ANSWER` -> videos, those with clips first; of the cells in `totals`, which can be opened.
    """
    place = {name: i for i, name in enumerate(class_names)}
    cells = defaultdict(list)
    for video in sorted(shown, key=lambda video: video not in previews):
        cell = f"{place[predictions[video].label]}-{place[predictions[video].predicted]}"
        if cell in totals:
            cells[cell].append(video)
    numbers = [0.0, *(number for preview in previews.values() for number in preview.evidence or ())]
    return {
        "classes": [printable(name) for name in class_names],
        "videos": shown,
        "cells": cells,
        "totals": totals,
        "clips": {video: clip_data(preview) for video, preview in previews.items()},
        "evidence": [min(numbers), max(numbers)],
    }


def clip_data(preview: Preview) -> dict:
    """A preview for the script: pictures as data URIs; seconds; pixels of one frame; evidence a frame."""
    evidence = preview.evidence
    return {
        "sprite": _uri(preview.sprite),
        "focus": None if preview.focus is None else _uri(preview.focus),
        "frames": preview.num_frames,
        "width": preview.width,
        "height": preview.height,
        "seconds": round(preview.seconds, 3),
        "evidence": None if evidence is None else [round(number, 4) for number in evidence],
    }


def _uri(webp: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(webp).decode()}"
