"""Does a model use time? The same videos frozen, shuffled, reversed, at half and at double speed."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace

from stvid.clip import ClipSpec
from stvid.data.manifest import Manifest
from stvid.data.sampling import PLAYBACKS
from stvid.evaluation.evaluate import predict_split, compute_metrics
from stvid.evaluation.results import PredictionRow
from stvid.run.checkpoint import TrainedModel

log = logging.getLogger(__name__)
AUDIT_METRICS = ("video_accuracy", "video_accuracy_ci95", "confusion")
STILL_MARGIN = 0.1  # by how much recall and precision of a class may fall that a still picture gives away
DIFFERENCE_NOTE = (
    "The model sees difference images: each frame brings along what moved within {seconds:g} s, also when the frames "
    "are shuffled: that takes away their order, but not this motion. Frozen, nothing moves."
)
DOUBLE_SPEED_NOTE = "At double speed a video is half as long; where a clip no longer fits, its last frame stands still."
PlaybackPredictions = Mapping[str, Sequence[PredictionRow]]


def predict_playbacks(
    trained: TrainedModel,
    data: Manifest,
    *,
    split: str,
    num_clips: int | None = None,
    num_crops: int | None = None,
    num_workers: int | str = "auto",
    speak: bool = True,
) -> dict[str, list[PredictionRow]]:
    """What the model answers to a split for every way to play its videos, see `playback.PLAYBACKS`.

    Args:
        trained: the model.
        data: the data set.
        split: the split.
        num_clips, num_crops, num_workers: see `inference.classify`.
        speak: say what is going on.
    """
    if trained.clip.short == "error":  # at double speed videos are shorter than those that were let through
        trained = replace(trained, clip=replace(trained.clip, short="repeat_last"))
    how = {"num_clips": num_clips, "num_crops": num_crops, "num_workers": num_workers}
    played = {}
    for playback in PLAYBACKS[1:]:
        if speak:
            log.info("audit: %s", playback.replace("_", " "))
        played[playback] = predict_split(trained, data, split=split, playback=playback, **how)
    return played


def audit_playbacks(predictions: Sequence[PredictionRow], played: PlaybackPredictions, class_names: Sequence[str], clip: ClipSpec) -> dict:
    """Compares what a model answers to videos as they are with what it answers when they are played otherwise.

    A model that needs time falls when the frames are frozen (one repeated) or shuffled. Actions that are each other's
    mirror in time change places when the video runs backwards: `confusion` tells.

    Args:
        predictions: of the videos as they are.
        played: of the same videos in the same order, see `predict_playbacks`.
        class_names: in the order of the model's outputs.
        clip: the clip's geometry.

    Returns:
        `audit_playbacks`: for each way to play `video_accuracy`, `video_accuracy_ci95`, `per_class` (recall; None of a class
        without videos), `confusion`, and `lost` and `gained`: videos that are right only as they are, and only so;
        `still_classes`, see there; and `audit_note`: what to know of them.
    """
    found, plain = {}, compute_metrics(predictions, class_names)
    for playback, ones in played.items():
        scores = compute_metrics(ones, class_names)
        pairs = [(before.is_right, after.is_right) for before, after in zip(predictions, ones, strict=True)]
        found[playback] = {
            **{key: scores[key] for key in AUDIT_METRICS},
            "per_class": {name: numbers["recall"] for name, numbers in scores["per_class"].items()},
            "lost": pairs.count((True, False)),
            "gained": pairs.count((False, True)),
        }
    notes = [DOUBLE_SPEED_NOTE] if clip.input == "rgb" else [DIFFERENCE_NOTE.format(seconds=clip.diff_seconds), DOUBLE_SPEED_NOTE]
    still = still_classes(plain, compute_metrics(played["frozen"], class_names))
    return {"audit": found, "still_classes": still, "audit_note": " ".join(notes)}


def audit_text(result: Mapping) -> str:
    """The accuracies as lines of text, and the classes that a still picture gives away."""
    rows = [("as it is", result), *((name.replace("_", " "), one) for name, one in result["audit"].items())]
    lines = ["does it use time?     video accuracy (95 % interval)"]
    for name, one in rows:
        low, high = one["video_accuracy_ci95"]
        lines.append(f"  {name:<18}  {one['video_accuracy']:.3f}   ({low:.3f} to {high:.3f})")
    lines.append(f"recognised from a still picture: {', '.join(result['still_classes']) or 'no class'}")
    return "\n".join([*lines, *textwrap.wrap(result["audit_note"], 100)])


def still_classes(plain: Mapping, frozen: Mapping) -> list[str]:
    """Classes that a still picture gives away: frozen, neither recall nor precision falls by more than 0.1.

    Both must lie at least 0.1 above what is right by chance, the class's share of the videos. Recall alone would not
    tell: who answers `sit_down` whenever somebody is between sitting and standing finds all that sit down, and takes
    for it all that stand up.

    Args:
        plain: scores of the videos as they are, see `compute_metrics`.
        frozen: of the frozen ones.
    """
    found = []
    for name, one in plain["per_class"].items():
        chance = one["num_videos"] / plain["num_videos"]
        numbers = [(one[key] or 0.0, frozen["per_class"][name][key] or 0.0) for key in ("recall", "precision")]
        if all(still >= before - STILL_MARGIN and min(before, still) > chance + STILL_MARGIN for before, still in numbers):
            found.append(name)
    return found
