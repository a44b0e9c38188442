"""The videos that several evaluations have in common, and those of them on which they differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stvid.evaluation.evaluations import Evaluation
from stvid.evaluation.predictions import PredictionRow

Video = tuple[tuple[str, float | None, float | None], str]  # `Prediction.video`, and its label


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A video that some have right and others wrong; the answers (class, probability) stand in the order of the runs.

    An answer of (None, None): the video could not be read.
    """

    path: str
    start: float | None
    end: float | None
    label: str
    answers: tuple[tuple[str | None, float | None], ...]


def common_videos(evaluations: Sequence[Evaluation]) -> list[dict[Video, PredictionRow]]:
    """Of each evaluation, the videos that all have, in the order of the first."""
    own = [{(one.video, one.label): one for one in each.predictions} for each in evaluations]
    shared = [video for video in own[0] if all(video in other for other in own)]
    return [{video: each[video] for video in shared} for each in own]


def differences(evaluations: Sequence[Evaluation]) -> list[Difference]:
    """The common videos that some have right and others wrong; first where one is right and surest of it."""
    found, common = [], common_videos(evaluations)
    for video in common[0]:
        each = [own[video] for own in common]
        if len({one.is_right for one in each}) == 2:
            (path, start, end), label = video
            answers = tuple((one.predicted, max(one.probabilities, default=None)) for one in each)
            found.append(Difference(path=path, start=start, end=end, label=label, answers=answers))
    return sorted(found, key=lambda one: (-_surest(one, right=True), -_surest(one, right=False), one.path))


def _surest(one: Difference, *, right: bool) -> float:
    return max(p or 0.0 for name, p in one.answers if (name == one.label) == right)
