"""Does a model use time? The same videos frozen, shuffled, reversed, at half and at double speed."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Mapping
from dataclasses import replace

from stvid.checkpoint import Trained
from stvid.data.manifest import Manifest
from stvid.data.playback import PLAYBACKS
from stvid.evaluation.evaluate import evaluate

log = logging.getLogger(__name__)

KEPT = ("video_accuracy", "video_accuracy_ci95", "confusion")
STILL = 0.1  # by how much recall and precision of a class may fall that a still picture gives away
DIFFERENCES = (
    "The model sees difference images: each frame brings along what moved within {seconds:g} s, also when the frames "
    "are shuffled: that takes away their order, but not this motion. Frozen, nothing moves."
)
SHORT = "At double speed a video is half as long; where a clip no longer fits, its last frame stands still."


def audit(
    trained: Trained,
    data: Manifest,
    result: Mapping,
    *,
    num_clips: int | None = None,
    num_crops: int | None = None,
    num_workers: int | str = "auto",
) -> dict:
    """Judges a split once for every way to play its videos.

    A model that needs time falls when the frames are frozen (one repeated) or shuffled. Actions that are each other's
    mirror in time change places when the video runs backwards: `confusion` tells. A class whose recall stays when the
    videos are frozen is recognised from a still picture.

    Args:
        trained: the model.
        data: the data set.
        result: of the videos as they are, see `evaluate`; its split is played.
        num_clips, num_crops, num_workers: see `evaluate`.

    Returns:
        `audit`: for each of `playback.PLAYBACKS` but the normal one `video_accuracy`, `video_accuracy_ci95`,
        `per_class` (recall; None of a class without videos) and `confusion`; `still_classes`, see there; and
        `audit_note`: what to know of them.
    """
    if trained.clip.short == "error":  # at double speed videos are shorter than those that were let through
        trained = replace(trained, clip=replace(trained.clip, short="repeat_last"))
    played = {}
    for playback in PLAYBACKS[1:]:
        log.info("audit: %s", playback.replace("_", " "))
        how = {"num_clips": num_clips, "num_crops": num_crops, "num_workers": num_workers}
        played[playback], _ = evaluate(trained, data, split=result["split"], playback=playback, **how)
    found = {}
    for playback, one in played.items():
        recalls = {name: numbers["recall"] for name, numbers in one["per_class"].items()}
        found[playback] = {**{key: one[key] for key in KEPT}, "per_class": recalls}
    notes = [SHORT]
    if trained.clip.input != "rgb":
        notes = [DIFFERENCES.format(seconds=trained.clip.diff_seconds), SHORT]
    still = still_classes(result, played["frozen"])
    return {"audit": found, "still_classes": still, "audit_note": " ".join(notes)}


def describe_audit(result: Mapping) -> str:
    """The accuracies as lines of text, and the classes that a still picture gives away."""
    rows = [("as it is", result), *((name.replace("_", " "), one) for name, one in result["audit"].items())]
    lines = ["does it use time?     video accuracy (95 % interval)"]
    for name, one in rows:
        low, high = one["video_accuracy_ci95"]
        lines.append(f"  {name:<18}  {one['video_accuracy']:.3f}   ({low:.3f} to {high:.3f})")
    lines.append(f"recognised from a still picture: {', '.join(result['still_classes']) or 'no class'}")
    return "\n".join([*lines, *textwrap.wrap(result["audit_note"], 100)])


def still_classes(result: Mapping, frozen: Mapping) -> list[str]:
    """Classes that a still picture gives away: frozen, neither recall nor precision falls by more than 0.1.

    Recall alone would not tell: who answers `sit_down` whenever somebody is between sitting and standing finds all that
    sit down, and takes for it all that stand up.

    Args:
        result: of the videos as they are.
        frozen: of the frozen ones.
    """
    return [
        name
        for name, one in result["per_class"].items()
        if one["recall"]
        and all((frozen["per_class"][name][key] or 0.0) >= (one[key] or 0.0) - STILL for key in ("recall", "precision"))
    ]
