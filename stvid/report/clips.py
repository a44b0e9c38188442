"""Clips of a report: selection of the videos, the number of clips that fit, and the data for the script."""

from __future__ import annotations

import base64
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import NamedTuple

from stvid.evaluation.results import PredictionRow
from stvid.evaluation.text import part_suffix
from stvid.report.previews import Preview
from stvid.terminal import visible

NUM_MISTAKES, NUM_CORRECT = 12, 6  # explained videos: most confident mistakes, least confident correct predictions
MAX_CLIPS = 400  # per page
MAX_VIDEOS = 3000  # per page; the first ones of the selection


class ClipSelection(NamedTuple):
    """Positions of videos among the predictions, without unreadable videos.

    Attributes:
        order: all videos, by decreasing priority for a clip.
        mistakes: the most confident mistakes, most confident first.
        correct: the least confident correct predictions, least confident first.
    """

    order: list[int]
    mistakes: list[int]
    correct: list[int]

    @property
    def explained(self) -> list[int]:
        return [*self.mistakes, *self.correct]


def confidence(row: PredictionRow) -> float:
    """Probability of the predicted class, in [0, 1]."""
    return max(row.probabilities)


def select_clips(predictions: Sequence[PredictionRow]) -> ClipSelection:
    """Selects the explained videos first, then the other mistakes, then the other correct predictions.

    The other videos are taken in turns from the cells of the confusion matrix. Within a cell, the most confident
    mistakes and the least confident correct predictions come first.
    """
    confidences = {video: confidence(row) for video, row in enumerate(predictions) if not row.failed}
    by_confidence = sorted(confidences, key=lambda video: confidences[video])
    correct = [video for video in by_confidence if predictions[video].is_correct]
    wrong = sorted((v for v in confidences if not predictions[v].is_correct), key=lambda video: -confidences[video])
    selection = ClipSelection([], wrong[:NUM_MISTAKES], correct[:NUM_CORRECT])
    explained = set(selection.explained)
    others = ([video for video in videos if video not in explained] for videos in (wrong, correct))
    selection.order.extend(chain(selection.explained, *(_round_robin(videos, predictions) for videos in others)))
    return selection


def _round_robin(videos: Sequence[int], predictions: Sequence[PredictionRow]) -> list[int]:
    """The first video of every cell of the confusion matrix, then the second of every cell, and so on."""
    cells = defaultdict(list)
    for video in videos:
        cells[predictions[video].label, predictions[video].predicted].append(video)
    return [video for turn in zip_longest(*cells.values()) for video in turn if video is not None]


def encoded_size(preview: Preview) -> int:
    """Bytes that a preview needs in a page: base64 and metadata."""
    return 4 * (len(preview.sprite) + len(preview.heat_sprite or b"")) // 3 + 300


def previews_within_budget(order: Sequence[int], previews: Mapping[int, Preview], budget: int) -> dict[int, Preview]:
    """The previews in the given order, up to the first that exceeds the budget (bytes) or the number of clips."""
    selected: dict[int, Preview] = {}
    for video in order:
        if video in previews:
            budget -= encoded_size(previews[video])
            if budget < 0 or len(selected) == MAX_CLIPS:
                break
            selected[video] = previews[video]
    return selected


def common_folder(paths: Sequence[str]) -> str | None:
    """The common folder of all files; None if it is only the root of a drive."""
    try:
        common = os.path.commonpath([os.path.dirname(path) for path in paths])
    except ValueError:  # no files, or files on several drives
        return None
    return common if common and common != Path(common).anchor else None


def card(row: PredictionRow, class_names: Sequence[str], root: str | None) -> dict:
    """The caption of a clip: `name`, `truth`, `predicted`, `confidence`, and another class with its probability.

    `other` is the true class of a mistake, or the second most probable class; `other_role` says which.
    """
    name = (os.path.relpath(row.path, root) if root else row.path) + part_suffix(row.start, row.end)
    other = class_names.index(row.label)
    if row.is_correct:
        others = (i for i in range(len(class_names)) if i != other)
        other = max(others, key=lambda i: row.probabilities[i], default=other)
    return {
        "name": visible(name),
        "truth": visible(row.label),
        "predicted": visible(row.predicted),
        "confidence": round(confidence(row), 4),
        "other_role": "second" if row.is_correct else "truth",
        "other": visible(class_names[other]),
        "other_probability": round(row.probabilities[other], 4),
    }


def cards(
    predictions: Sequence[PredictionRow], class_names: Sequence[str], selection: ClipSelection
) -> dict[int, dict]:
    """Video -> card for all videos that the page can show, in the order of the selection."""
    root = common_folder([row.path for row in predictions])
    return {video: card(predictions[video], class_names, root) for video in selection.order[:MAX_VIDEOS]}


def page_data(
    predictions: Sequence[PredictionRow],
    class_names: Sequence[str],
    video_cards: Mapping[int, dict],
    totals: Mapping[str, int],
    previews: Mapping[int, Preview],
) -> dict:
    """Data for the script of the page.

    Returns:
        `classes` (names); `videos` (see `cards`); `cells` (`TRUTH-PREDICTED` -> videos, those with clips first; only
        the cells in `totals`, which can be opened); `totals`; `clips` (see `clip_data`); `evidence` (minimum and
        maximum over all clips).
    """
    index = {name: i for i, name in enumerate(class_names)}
    cells = defaultdict(list)
    for video in sorted(video_cards, key=lambda video: video not in previews):
        row = predictions[video]
        cell = f"{index[row.label]}-{index[row.predicted]}"  # type: ignore[index] # the video could be read
        if cell in totals:
            cells[cell].append(video)
    evidence = [0.0, *(number for preview in previews.values() for number in preview.evidence or ())]
    return {
        "classes": [visible(name) for name in class_names],
        "videos": video_cards,
        "cells": cells,
        "totals": totals,
        "clips": {video: clip_data(preview) for video, preview in previews.items()},
        "evidence": [min(evidence), max(evidence)],
    }


def clip_data(preview: Preview) -> dict:
    """A preview for the script: sprites as data URIs, size of a frame in pixels, duration, evidence per frame."""
    evidence = preview.evidence
    return {
        "sprite": _data_uri(preview.sprite),
        "heat_sprite": None if preview.heat_sprite is None else _data_uri(preview.heat_sprite),
        "frames": preview.num_frames,
        "width": preview.width,
        "height": preview.height,
        "seconds": round(preview.seconds, 3),
        "evidence": None if evidence is None else [round(number, 4) for number in evidence],
    }


def _data_uri(webp: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(webp).decode()}"
