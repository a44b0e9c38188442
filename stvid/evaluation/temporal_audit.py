"""The temporal audit: does a model use time? It evaluates the same videos with their frames changed."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace

from stvid.clip import ClipSpec
from stvid.data.manifest import Manifest
from stvid.data.sampling import PLAYBACKS
from stvid.errors import listing
from stvid.evaluation.evaluate import compute_metrics, predict_split
from stvid.evaluation.results import PredictionRow
from stvid.run.checkpoint import TrainedModel

log = logging.getLogger(__name__)
AUDIT_METRICS = ("video_accuracy", "video_accuracy_ci95", "confusion", "confusion_counts")
STILL_MARGIN = 0.1  # largest drop of recall and precision of a class that is recognised from a still image
DIFFERENCE_NOTE = (
    "The model sees difference images: each frame contains the motion of {seconds:g} s, also if the frames are "
    "shuffled. Shuffling removes the order of the frames, but not this motion; freezing removes both."
)
DOUBLE_SPEED_NOTE = "At double speed a video is half as long; if a clip no longer fits, its last frame is repeated."
PlaybackPredictions = Mapping[str, Sequence[PredictionRow]]


def predict_playbacks(
    trained: TrainedModel,
    data: Manifest,
    *,
    split: str,
    num_clips: int | None = None,
    num_crops: int | None = None,
    num_workers: int | str = "auto",
    is_main_process: bool = True,
) -> dict[str, list[PredictionRow]]:
    """Predictions for the videos of a split in every changed playback, see `sampling.PLAYBACKS`.

    Args:
        trained: the model.
        data: the data set.
        split: the split.
        num_clips, num_crops, num_workers: see `inference.classify`.
        is_main_process: log which playback is evaluated.
    """
    if trained.clip.short == "error":  # at double speed, a video that was long enough can be too short
        trained = replace(trained, clip=replace(trained.clip, short="repeat_last"))
    playbacks = {}
    for playback in PLAYBACKS[1:]:
        if is_main_process:
            log.info("temporal audit: %s", playback.replace("_", " "))
        playbacks[playback] = predict_split(
            trained,
            data,
            split=split,
            playback=playback,
            num_clips=num_clips,
            num_crops=num_crops,
            num_workers=num_workers,
        )
    return playbacks


def audit_metrics(
    predictions: Sequence[PredictionRow],
    playbacks: PlaybackPredictions,
    class_names: Sequence[str],
    clip: ClipSpec,
) -> dict:
    """Compares the predictions for unchanged videos with those for every changed playback.

    If a model uses time, its accuracy falls when the frames are frozen (one frame repeated) or shuffled. When the video
    is reversed, it swaps actions that are mirror images of each other in time, which `confusion` shows.

    Args:
        predictions: for the unchanged videos.
        playbacks: for the same videos in the same order, see `predict_playbacks`.
        class_names: in the order of the model's outputs.
        clip: the geometry of the clips.

    Returns:
        `audit`: for each playback `video_accuracy`, `video_accuracy_ci95`, `per_class` (recall; None for a class
        without videos), `confusion` or `confusion_counts`, `lost` (number of videos that are correct only if unchanged)
        and `gained` (only if changed); `still_classes`, see there; and `audit_note`, which explains limits of the
        audit.
    """
    audit, unchanged = {}, compute_metrics(predictions, class_names)
    for playback, changed_predictions in playbacks.items():
        metrics = compute_metrics(changed_predictions, class_names)
        correct = [(a.is_correct, b.is_correct) for a, b in zip(predictions, changed_predictions, strict=True)]
        audit[playback] = {
            **{key: metrics[key] for key in AUDIT_METRICS if key in metrics},
            "per_class": {name: numbers["recall"] for name, numbers in metrics["per_class"].items()},
            "lost": correct.count((True, False)),
            "gained": correct.count((False, True)),
        }
    notes = [] if clip.input == "rgb" else [DIFFERENCE_NOTE.format(seconds=clip.diff_seconds)]
    still = still_classes(unchanged, compute_metrics(playbacks["frozen"], class_names))
    return {"audit": audit, "still_classes": still, "audit_note": " ".join([*notes, DOUBLE_SPEED_NOTE])}


def audit_text(result: Mapping) -> str:
    """The accuracy of each playback for a terminal, and the classes that are recognised from a still image."""
    rows = [("unchanged", result), *((name.replace("_", " "), metrics) for name, metrics in result["audit"].items())]
    lines = ["temporal audit        video accuracy (95 % interval)"]
    for name, metrics in rows:
        low, high = metrics["video_accuracy_ci95"]
        lines.append(f"  {name:<18}  {metrics['video_accuracy']:.3f}   ({low:.3f} to {high:.3f})")
    lines.append(f"recognised from a still image: {listing(result['still_classes']) or 'no class'}")
    return "\n".join([*lines, *textwrap.wrap(result["audit_note"], 100)])


def still_classes(unchanged: Mapping, frozen: Mapping) -> list[str]:
    """Classes that are recognised from a still image: freezing lowers neither recall nor precision by more than 0.1.

    Both must also be at least 0.1 above chance, the fraction of videos that belong to the class. Recall alone is not
    enough: a model that predicts `sit_down` for every posture between sitting and standing has a perfect recall of
    `sit_down`, although it also predicts it for all videos of `stand_up`.

    Args:
        unchanged: metrics of the unchanged videos, see `compute_metrics`.
        frozen: metrics of the frozen videos.
    """
    names = []
    for name, metrics in unchanged["per_class"].items():
        threshold = metrics["num_videos"] / unchanged["num_videos"] + STILL_MARGIN
        pairs = [(metrics[key] or 0.0, frozen["per_class"][name][key] or 0.0) for key in ("recall", "precision")]
        if all(still >= moving - STILL_MARGIN and min(moving, still) > threshold for moving, still in pairs):
            names.append(name)
    return names
