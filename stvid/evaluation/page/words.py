"""What a result says, in sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping

from stvid.evaluation.notation import NBSP, count, interval, p_equals, percent
from stvid.evaluation.pairing import mcnemar, paired_interval

UNBALANCED = 1.5  # times what chance gets right: from here on the most common class is worth naming
TOO_SURE = 0.02  # confidence minus accuracy, above which it is called too much
CLEAR = 0.05  # p, below which a difference is called unlikely to be chance
HARDLY = 0.05  # a difference of accuracies that hardly matters
PLAYED = {  # in the ways of `playback.PLAYBACKS`: what is shown of a video then
    "frozen": "the clip's middle frame, repeated",
    "shuffled": "the clip's frames in random order",
    "reversed": "the clip's frames backwards",
    "half_speed": "every frame of the video twice",
    "double_speed": "every other frame of the video",
}
USES = {  # of time, what a loss proves and what no loss does
    "shuffled": ("it uses the order of frames", "the order of frames hardly matters to it"),
    "frozen": ("it uses motion", "a still picture is as good to it as the video"),
}


def number_right(result: Mapping) -> int:
    """Videos judged right."""
    return round(result["video_accuracy"] * result["num_videos"])


def first_sentence(result: Mapping) -> str:
    """How often it was right, on what, and how often a guess would be: what a reader wants to know first."""
    total, sizes = result["num_videos"], {name: one["num_videos"] for name, one in result["per_class"].items()}
    chance = total / len(result["class_names"])
    right = f"Right on {number_right(result):,} of {count(total, 'video')}"
    sentence = f"{right}{_whose(result)}; chance would be {_rough(chance)}"
    common = max(sizes, key=sizes.get)
    if sizes[common] > UNBALANCED * chance:
        sentence += f", and always answering {common} {sizes[common]:,}"
    return f"{sentence}."


def _whose(result: Mapping) -> str:
    """Whether the model knew the videos, to stand behind their number."""
    split, seen = result["split"], result["num_seen"]
    all_of_own = seen == result["num_videos"] and result["manifest"] is None
    if "folds" in result:
        folds = f" in {len(result['folds'])} folds"
        if seen:
            return f"{folds}, {seen:,} of them judged by a model that was trained on them or chosen by them"
        return f"{folds}, each judged by a model that was not trained on it"
    if all_of_own and split in ("train", "val"):
        return {"train": " it was trained on", "val": " it was chosen by, but not trained on"}[split]
    if seen:
        return f", {seen:,} of which it was trained on or chosen by"
    return " it had never seen"


def _rough(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 or number == int(number) else f"{number:.1f}"


def protocol(result: Mapping) -> str:
    """The views by which every video was judged, in a sentence."""
    rule = result["protocol"]
    clips, crops = rule["num_clips"], rule["num_crops"]
    height, width = rule["size"]
    if rule.get("fps") is not None:
        rate = f"{rule['fps']:g} frames taken per second of video"
    elif rule["frame_stride"] == 1:
        rate = "every frame"
    else:
        rate = f"one frame of every {rule['frame_stride']}"
    frames = "all its frames" if rule["num_frames"] is None else count(rule["num_frames"], "frame")
    views = f"{count(clips, 'clip')} × {count(crops, 'crop')}".replace(" ", NBSP)
    together = "its answer is the mean of their probabilities" if clips * crops > 1 else "it has one view"
    return f"Each video is judged by {views} of {frames} ({rate}), {height} × {width} pixels; {together}."


def interval_basis(result: Mapping) -> str:
    """How the 95 % intervals were drawn."""
    basis = result["interval"]
    if basis["over"] == "groups":
        return f"95{NBSP}% interval, bootstrap over {count(basis['num'], 'group')}"
    return f"95{NBSP}% interval (Wilson's) of {count(basis['num'], 'video')}"


def calibration(result: Mapping) -> str:
    """Whether it is as often right as it says, in a sentence."""
    bins = [one for one in result["reliability"] if one["num_videos"]]
    total = sum(one["num_videos"] for one in bins)
    sure, right = (sum(one[key] * one["num_videos"] for one in bins) / total for key in ("confidence", "accuracy"))
    gap = 100 * abs(sure - right)
    if abs(sure - right) <= TOO_SURE:
        verdict = "on the whole as sure as it should be"
    else:
        verdict = f"too {'sure' if sure > right else 'cautious'} by {gap:.1f} points"
    return f"It gives its answers a mean probability of {percent(sure)} and is right on {percent(right)}: {verdict}."


def temperature(result: Mapping) -> str:
    """What was done to the probabilities."""
    found = result["protocol"]["temperature"]
    if found is None:
        return "Each fold's probabilities are calibrated by a temperature of its own, fitted on its val."
    if found == 1.0:
        return "Probabilities are the model's own, not calibrated."
    return f"Calibrated: logits are divided by a temperature of {found:.3g}, which was fitted on val."


def time_verdict(result: Mapping) -> list[str]:
    """What the audit says of order and motion: a paired test tells a loss, a narrow paired interval that there is none.

    Of a model that is not better than chance, nothing can be lost.
    """
    right, chance = result["video_accuracy"], 1 / len(result["class_names"])
    if result["video_accuracy_ci95"][0] <= chance:
        bounds = interval(result["video_accuracy_ci95"])
        whole = f"Right on {percent(right)} ({bounds}), it is not clearly above chance ({percent(chance)})"
        return [f"{whole}: whether it uses time cannot be told."]
    sentences = []
    for playback, (used, unused) in USES.items():
        one = result["audit"][playback]
        lost, gained = one["lost"], one["gained"]
        p, (low, high) = mcnemar(lost, gained), paired_interval(lost, gained, result["num_videos"])
        if p < CLEAR:
            verdict = used if lost > gained else "so it is even better"
        else:
            verdict = unused if low >= -HARDLY and high <= HARDLY else "too few videos to tell"
        change = f"{lost:,} lost and {gained:,} gained, {p_equals(p)}"
        told = f"is right on {percent(one['video_accuracy'])} instead of {percent(right)} ({change})"
        sentences.append(f"With the videos {playback} it {told}: {verdict}.")
    return sentences


def chance_loss(result: Mapping) -> float:
    """The log loss of who gives every class the same probability: `log K`."""
    return math.log(len(result["class_names"]))
